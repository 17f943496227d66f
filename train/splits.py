"""Which rows are held out: whole groups of rows, so that nothing in them was learnt by heart.

Rows that share a question, a picture or a document, by content, are a group, and so are those that
each share something with a third (connected components). Where documents join so many rows that
too few could be held out, as one manual for all rows does, they are passed over, with a warning.
"""

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import NamedTuple

from mmrag_batch.errors import ConfigError, InputError, RowError
from mmrag_batch.records import Document, Question
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.formats import read_header, read_records
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.values import is_empty
from mmrag_batch.train.wording import normalized

log = logging.getLogger(__name__)

LEEWAY = 2
"""Groups are whole, so at most this many times more or fewer rows are held out than wanted."""

SHOWN = 5
"""Most values that a message names."""

Side = tuple[Hashable, Hashable]
"""What identifies the text and the picture of a question or a document; falsy where absent."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a row may share with others."""

    question: frozenset[Hashable]
    documents: frozenset[Hashable]


class Column(NamedTuple):
    """A column of a table, and its values by the number of the row."""

    name: str
    values: Sequence[str]

    def at(self, numbers: Iterable[int]) -> "Column":
        """The same for some of the rows."""
        return Column(self.name, [self.values[number] for number in numbers])


def contents(question: Side, documents: Iterable[Side]) -> Contents:
    """A text counts with its picture, a picture also alone."""
    return Contents(
        frozenset([("question", *question), *_picture(question)]),
        frozenset(key for side in documents for key in (side, *_picture(side))),
    )


def question_contents(question: Question, images: ImageStore) -> Contents:
    """The contents of a question and its documents: pictures by their bytes, texts whatever their
    case and spaces."""
    documents = (_side(document, images) for document in question.documents)
    return contents(_side(question, images), documents)


def hold_out(rows: Sequence[Contents], count: int, seed: int) -> set[int]:
    """The indices of about `count` rows, at random, that share nothing with the others.

    Raises InputError where all rows share a question or a picture.
    """
    apart = _choose(components([row.question | row.documents for row in rows]), count, seed)
    if count / LEEWAY <= len(apart) <= count * LEEWAY:
        return apart
    same_documents = _choose(components([row.question for row in rows]), count, seed)
    if not same_documents:
        raise InputError(
            f"All {len(rows)} rows share a question or a picture, directly or by way of others: "
            "none can be held out that would be new. Set `held_out_by` to a column of the table."
        )
    log.warning(
        "Documents join too many rows to keep them apart: %d rows are held out that share "
        "documents with the others, but no question and no picture of one. Their scores are for "
        "new questions about known documents; for new documents, set `held_out_by` to a column, "
        "such as one that names the manual.",
        len(same_documents),
    )
    return same_documents


def hold_out_by(cells: Column, count: int, seed: int) -> set[int]:
    """The indices of about `count` rows: all those with certain values of a column, drawn at
    random, or with its rarest one. Raises InputError where there is one value only."""
    chosen = _choose(cells.values, count, seed)
    if not chosen:
        raise InputError(
            f"held_out_by: all rows have the same `{cells.name}`; name another column."
        )
    values = sorted({cells.values[index] for index in chosen})
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    log.info(
        "Held out are the %d rows whose `%s` is %s%s.",
        len(chosen),
        cells.name,
        ", ".join(map(repr, values[:SHOWN])),
        more,
    )
    return chosen


def check_column(table: Path, column: str, names: Names = AS_THEY_ARE) -> None:
    """Raise ConfigError if a table has no such column."""
    columns = read_header(table, names)
    if column not in columns:
        near = get_close_matches(column, columns, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"held_out_by: {table} has no column {column!r}. {hint}Its columns are: "
            f"{', '.join(columns)}."
        )


def read_column(table: Path, column: str, names: Names = AS_THEY_ARE) -> Column:
    """A column of all rows; empty cells are equal."""
    cells = (record.cells.get(column) for record in read_records(table, names))
    return Column(column, ["" if is_empty(cell) else str(cell) for cell in cells])


def _side(item: Question | Document, images: ImageStore) -> Side:
    text = normalized(item.text or "")
    if item.image is None:
        return text, ""
    try:
        return text, images.digest(item.image)
    except RowError:
        return text, item.image  # not readable; its name is all there is


def _picture(side: Side) -> list[Hashable]:
    return [("picture", side[1])] if side[1] else []


def components(items: Sequence[frozenset[Hashable]]) -> list[int]:
    """For each item the first one of its component: those that share a key belong together."""
    parents = list(range(len(items)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    owners: dict[Hashable, int] = {}
    for index, keys in enumerate(items):
        for key in keys:
            low, high = sorted((root(index), root(owners.setdefault(key, index))))
            parents[high] = low
    return [root(index) for index in range(len(items))]


def _choose(groups: Sequence[Hashable], count: int, seed: int) -> set[int]:
    """The indices of whole groups, in a random order each that still fits into `count`; of the
    smallest one where none does. Empty where there is one group only."""
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < 2:
        return set()
    shuffled = Random(seed).sample(list(members.values()), len(members))
    chosen: list[int] = []
    for indices in shuffled:
        if len(chosen) + len(indices) <= count:
            chosen += indices
    if not chosen:
        chosen = min(shuffled, key=len)
    return set(chosen)
