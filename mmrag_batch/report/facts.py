"""What there is to know of each row of an output, read once: all figures are made of it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mmrag_batch.errors import ConfigError, InputError, RowError
from mmrag_batch.records import Row
from mmrag_batch.report.free_form import FreeForm, score_answer
from mmrag_batch.table.cells import parse_choices
from mmrag_batch.table.names import AS_THEY_ARE, Names, find_columns
from mmrag_batch.table.output import OUTPUT_COLUMNS, check_written
from mmrag_batch.table.rows import read_header
from mmrag_batch.table.truth import (
    Labels,
    Reading,
    find_ranks,
    is_labelled,
    read_answers,
    read_labels,
)
from mmrag_batch.table.values import is_empty

FACTS = (
    *("status", "truth", "correct", "free_form", "right", "confidence"),
    *("kept", "ranks", "relevant", "id", "meaning", "codes"),
)
"""What is needed of a row; see `_facts`."""
NEEDED = ("prediction_index", "confidence", "evidence", "status")
MOST_GROUPS = 20
LONGEST_VALUE = 60
"""Of a column that makes groups unasked: different values, and characters of each."""
NO_GROUPS = frozenset({"id", "question_text", "question_image", "answer_choices", "documents"})
NO_GROUPS |= {"relevant", "answers", *OUTPUT_COLUMNS} - {"status"}
_CODE = re.compile(r"; ([a-z]+(?:_[a-z]+)*): ")


@dataclass(frozen=True, slots=True)
class Facts:
    """`frame` has the columns FACTS and a line a row, in order; `columns` the values of columns
    that make groups; `messages` the first that each code of a problem came with."""

    frame: pd.DataFrame
    columns: dict[str, list[str]]
    labels: Labels
    messages: dict[str, str]


def read_facts(
    path: Path,
    *,
    by: Sequence[str] | None = (),
    reading: Reading | None = None,
    names: Names = AS_THEY_ARE,
) -> Facts:
    """The facts of an output of `predict`, with the values of columns `by`; where that is None, of
    each that is not ours, but for `label` and `status`, and has two to MOST_GROUPS short values.

    Raises InputError for a table that is no such output, ConfigError for an unknown column in `by`,
    and what `read_header` raises.
    """
    columns = read_header(path, names)
    check_written(path, columns, NEEDED)
    unknown = [name for name in by or () if name not in columns]
    if unknown:
        raise ConfigError(
            f"--by: {path} has no column {', '.join(unknown)}; it has {', '.join(columns)}."
        )
    ours = NO_GROUPS | {
        theirs for name, theirs in find_columns(columns, names).items() if name in NO_GROUPS
    }
    asked = [name for name in columns if name not in ours] if by is None else by
    values: dict[str, list[str]] = {column: [] for column in asked}
    pools: dict[str, dict[str, str]] = {column: {} for column in asked}
    row_facts = []
    messages: dict[str, str] = {}
    labels = read_labels(path, reading, names=names)
    for row in labels.rows():  # texts and documents are not kept: a file may be large
        found = _find_problems(row.cells.get("error"))
        messages = found | messages
        row_facts.append((*_facts(row, labels), tuple(found)))
        for column, pool in list(pools.items()):
            value = str(row.cells.get(column, ""))
            values[column].append(pool.setdefault(value, value))
            if by is None and (len(pool) > MOST_GROUPS or len(value) > LONGEST_VALUE):
                del pools[column], values[column]
    if by is None:
        values = {column: some for column, some in values.items() if len(pools[column]) > 1}
    return Facts(pd.DataFrame(row_facts, columns=FACTS), values, labels, messages)


def _find_problems(cell: object) -> dict[str, str]:
    """The problems that a cell of `error` tells: the first message of each code."""
    _, *parts = _CODE.split(f"; {cell}") if not is_empty(cell) else [""]
    return dict(reversed(list(zip(parts[::2], parts[1::2]))))


def _facts(row: Row, labels: Labels) -> tuple[object, ...]:
    """What FACTS names: its status; what its label is: none, unreadable, a choice or free_form;
    whether it is correct, None without a valid label, and how near it is in free form; whether
    either says that it is right, None where the answer is withheld; its confidence; how many
    documents were kept, the ranks of the relevant among them, and how many are relevant; its id, if
    it has one; and what says whether a row of another output asks the same. `read_facts` adds the
    codes of its problems."""
    evidence = _evidence(row)
    relevant, ranks = frozenset[str](), tuple[int, ...]()
    if row.question is not None and row.question.relevant:
        relevant = row.question.relevant
        ranks = find_ranks(evidence, relevant, row.question.documents)
    truth, correct, written = _truth(row, labels)
    status, confidence = row.cells.get("status"), _value(row, "confidence")
    right = correct if written is None else written.exact_match == 1
    right = None if status == "abstained" else right
    known = (status, truth, correct, written, right, confidence)
    cell = row.cells.get("id")
    asked = row.question and (row.question.text, row.question.image, row.question.choices)
    meaning = hash((asked, str(row.cells.get("label"))))
    name = None if is_empty(cell) else str(cell)
    return *known, len(evidence), ranks, len(relevant), name, meaning


def _truth(row: Row, labels: Labels) -> tuple[str, bool | None, FreeForm | None]:
    """What the label is, whether the row is correct, and how near in free form; known even where
    something else of the row is broken."""
    cell = row.cells.get("label")
    try:
        choices = parse_choices(row.cells.get("answer_choices"))
    except RowError:  # so that no answer could be given
        return ("none", None, None) if is_empty(cell) else ("choice", False, None)
    if not choices and (written := _free_form(row)) is not None:
        return "free_form", None, written
    if not choices or not is_labelled(cell, choices):
        return "none", None, None
    label = labels.find(cell, choices)
    if label is None:
        return "unreadable", None, None
    return "choice", _value(row, "prediction_index") == label, None


def _free_form(row: Row) -> FreeForm | None:
    """The figures of an answer in free form; None without a right one."""
    people = read_answers(row.cells.get("answers"))
    references = read_answers(row.cells.get("label")) or people
    if not references:
        return None
    return score_answer(str(row.cells.get("prediction") or ""), references, people)


def _value(row: Row, column: str) -> float | None:
    cell = row.cells.get(column)
    try:
        return None if is_empty(cell) else float(str(cell))
    except ValueError:
        raise _unreadable(row, column) from None


def _evidence(row: Row) -> list[str]:
    """The ids of the documents kept, best first."""
    cell: Any = row.cells.get("evidence")
    try:
        items = json.loads(cell) if isinstance(cell, str) else cell
        return [item["id"] for item in items]
    except (ValueError, TypeError, KeyError):
        raise _unreadable(row, "evidence") from None


def _unreadable(row: Row, column: str) -> InputError:
    return InputError(
        f"Line {row.line}, {column}: {row.cells.get(column)!r} is not what `predict` writes there; "
        "give the file as it wrote it."
    )
