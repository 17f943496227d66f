"""A row as it was read, and what every table must have."""

from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from mmrag_batch.errors import InputError
from mmrag_batch.records import Problem

REQUIRED = "question_text"


class Record(NamedTuple):
    """One row as it was read. `line` is where it starts; in Parquet, the row's number from 1.

    A record with a `problem` is a row whose structure is broken; `cells` hold what could be read.
    """

    line: int
    cells: dict[str, object]
    problem: Problem | None = None


def check_columns(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """The columns of a table. Raises InputError where there are none, two of one name, or no
    question in them."""
    columns = tuple(names)
    if not columns:
        raise InputError(f"{path} is empty: it has no columns. Write a `{REQUIRED}` column.")
    duplicates = [name for name, count in Counter(columns).items() if count > 1]
    if duplicates:
        raise InputError(
            f"{path}: duplicate column {', '.join(map(repr, duplicates))}. Rename all but one."
        )
    if REQUIRED not in columns:
        matches = get_close_matches(REQUIRED, columns, n=1)
        hint = f"Did you mean {matches[0]!r}? Rename it." if matches else "Add or rename one."
        column_list = ", ".join(map(repr, columns))
        raise InputError(f"{path}: no column {REQUIRED!r}. Found: {column_list}. {hint}")
    return columns
