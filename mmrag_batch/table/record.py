"""A row as it was read, and what every table must have."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from typing import NamedTuple

from mmrag_batch.errors import InputError
from mmrag_batch.records import Problem
from mmrag_batch.table.names import AS_THEY_ARE, Names, find_columns, find_near, how_to_map

REQUIRED = "question_text"
MAX_CELL = 10 * 2**20
"""Most characters in one cell, or bytes."""
SHOWN = 50
"""Most columns that a message names."""
_SHORT = Repr()
_SHORT.maxstring = 80


class Typed(ABC):
    """A cell of a type that JSON has not."""

    @property
    @abstractmethod
    def plain(self) -> object:
        """Made of what JSON has, and of bytes."""


class Cells(dict[str, object]):
    """The cells of a row by the names that the table has for them. `get` knows ours as well, and
    gives what is typed in plain."""

    def __init__(self, cells: Mapping[str, object], found: Mapping[str, str]) -> None:
        super().__init__(cells)
        self._found = found

    def get(self, name: str, default: object = None) -> object:
        cell = super().get(self._found.get(name, name), default)
        return cell.plain if isinstance(cell, Typed) else cell


class Record(NamedTuple):
    """One row as it was read. `line` is where it starts; in Parquet, the row's number from 1.

    A record with a `problem` is a row whose structure is broken; `cells` hold what could be read.
    """

    line: int
    cells: dict[str, object]
    problem: Problem | None = None


def check_columns_differ(path: Path, columns: Sequence[str]) -> None:
    """Raise InputError where there are no columns, or two of one name."""
    if not columns:
        raise InputError(f"{path} is empty: it has no columns. Write a `{REQUIRED}` column.")
    duplicates = [name for name, count in Counter(columns).items() if count > 1]
    if duplicates:
        raise InputError(f"{path}: duplicate column {_show(duplicates)}. Rename all but one.")


def _show(names: Sequence[str]) -> str:
    """Some names, in so many words: what is no table may have thousands, or one without an end."""
    shown = [_SHORT.repr(name) for name in names[:SHOWN]]
    more = [f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return ", ".join(shown + more)


def check_columns(path: Path, columns: Sequence[str], names: Names = AS_THEY_ARE) -> None:
    """Raise InputError where a table has none of a name in `names`, or no question."""
    check_columns_differ(path, columns)
    ours = find_columns(columns, names)
    column_list = _show(columns)
    if absent := [name for name in ours.values() if name not in columns]:
        raise InputError(
            f"{path}: no column {absent[0]!r}, as --columns calls one. Found: {column_list}."
        )
    if REQUIRED not in columns and REQUIRED not in ours:
        near = find_near(REQUIRED, columns)
        hint = "Add or rename one."
        if near is not None:
            mapping = how_to_map({**names, REQUIRED: near})
            hint = f"Did you mean {near!r}? Rename it, or add `{mapping}`."
        raise InputError(f"{path}: no column {REQUIRED!r}. Found: {column_list}. {hint}")
