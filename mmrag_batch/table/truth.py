"""What the columns `label` and `relevant` say: evaluation and training ask, `predict` never looks.

A label names a choice by its text, its 0-based index or its letter. Which of these a column means
is decided once, from all of its cells: pandas writes the index 2 and the choice "2" alike, `2.0`.
"""

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

from mmrag_batch.errors import RowError
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.sources import CORPUS, may_be_pdf, name_page, split_page
from mmrag_batch.table.cells import parse_choices
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.record import Record
from mmrag_batch.table.rows import read_records, read_rows
from mmrag_batch.table.values import expected_error, is_empty, parse_list

log = logging.getLogger(__name__)
Reading = Literal["text", "index", "letter"]
_INDEX = re.compile(r"\s*([0-9]{1,2})(?:\.0+)?\s*")
_LETTER = re.compile(r"\s*\(?([A-Za-z])[.):]?\s*")
_WORDS = {"text": "the text of a choice", "index": "a 0-based index", "letter": "a letter"}
FEW = 5
"""Cells that cannot be read that are shown."""


@dataclass(slots=True)
class Labels:
    """How the label column of a table is read.

    `names` are what the table calls our columns. A cell is read by the first of `readings` that
    fits it. `fits` counts labelled rows by the readings that fit, `disputed` those that text and
    index read as different choices; `unreadable` and `free_form` count the others, `examples` are
    (line, cell) of the first that no reading fits.
    """

    path: Path
    readings: tuple[Reading, ...]
    names: Names = field(default_factory=dict)
    fits: Counter[tuple[Reading, ...]] = field(default_factory=Counter)
    disputed: int = 0
    unreadable: int = 0
    free_form: int = 0
    examples: list[tuple[int, object]] = field(default_factory=list)

    def find(self, cell: object, choices: Sequence[str]) -> int | None:
        """The index of the choice that a label names; None where it names none."""
        if not is_labelled(cell, choices):
            return None
        found = (READERS[reading](cell, choices) for reading in self.readings)
        return next((index for index in found if index is not None), None)

    def rows(self) -> Iterator[Row]:
        """The rows of the table; their questions know their label and their relevant documents.
        Where a `relevant` cell cannot be read, nothing is known."""
        return map(self.tell, read_rows(self.path, names=self.names))

    def tell(self, row: Row) -> Row:
        """The row of the table, told what is true."""
        if row.question is not None:
            cell = row.cells.get("label")
            relevant, _ = find_relevant(row.cells.get("relevant"), row.question.documents)
            row.question = replace(
                row.question,
                label=self.find(cell, row.question.choices),
                relevant=relevant,
                answers=() if row.question.choices else read_answers(cell),
            )
        return row

    def by_reading(self) -> Counter[Reading]:
        """How many labels are read in which way."""
        counts: Counter[Reading] = Counter()
        for fitting, rows in self.fits.items():
            counts[next(one for one in self.readings if one in fitting)] += rows
        return counts

    def describe(self) -> list[str]:
        """The same for people: what a label means, and which cannot be read."""
        lines = []
        counts = self.by_reading()
        if counts:
            parts = [f"{counts[one]:,} as {_WORDS[one]}" for one in self.readings if counts[one]]
            lines.append(f"label: {counts.total():,} read, {', '.join(parts)}.")
        if self.disputed and len(self.readings) > 1:
            other = "index" if self.readings[0] == "text" else "text"
            lines.append(
                f"label: {self.disputed:,} would be other choices if read as {_WORDS[other]}; say "
                f"which is right: `--labels {self.readings[0]}` or `--labels {other}`."
            )
        if self.unreadable:
            cells = ", ".join(f"line {line}: {cell!r}" for line, cell in self.examples)
            lines.append(f"label: {self.unreadable:,} name no choice of their row ({cells}).")
        return lines


def read_labels(
    path: Path,
    reading: Reading | None = None,
    *,
    names: Names = AS_THEY_ARE,
    records: Iterable[Record] | None = None,
) -> Labels:
    """Decide how the labels of a table are read: in the way that fits most of them, or in `reading`
    alone. Where several fit as many, text is preferred to index, and that to letter. `records` are
    those of the table, for who reads them in another way.

    Raises what `read_header` raises.
    """
    labels = Labels(path, (reading,) if reading is not None else tuple(READERS), names)
    votes: Counter[Reading] = Counter()
    for record in read_records(path, names) if records is None else records:
        cell = record.cells.get("label")
        try:
            choices = parse_choices(record.cells.get("answer_choices"))
        except RowError:
            continue
        if not is_labelled(cell, choices):
            continue
        if not choices:
            labels.free_form += 1
            continue
        found = {one: READERS[one](cell, choices) for one in labels.readings}
        fitting = tuple(one for one, index in found.items() if index is not None)
        if fitting:
            labels.fits[fitting] += 1
            votes.update(fitting)
            if {"text", "index"} <= set(fitting) and found["text"] != found["index"]:
                labels.disputed += 1
        else:
            labels.unreadable += 1
            if len(labels.examples) < FEW:
                labels.examples.append((record.line, cell))
    labels.readings = tuple(sorted(labels.readings, key=lambda one: -votes[one]))
    return labels


def read_labelled_rows(
    path: Path, reading: Reading | None = None, *, names: Names = AS_THEY_ARE
) -> Iterator[Row]:
    """The rows of a table whose questions know what is true; how labels are read is logged."""
    labels = read_labels(path, reading, names=names)
    for line in labels.describe():
        log.info("%s: %s", path, line)
    return labels.rows()


def is_labelled(cell: object, choices: Sequence[str]) -> bool:
    """Whether a cell is a label at all; "None" may be a choice."""
    return not is_empty(cell) or cell in choices


def read_answers(cell: object) -> tuple[str, ...]:
    """The right answers in free form: the texts of a list, or the text that a cell is."""
    try:
        items = parse_list("bad_label", "label", "a list of texts", cell)
    except RowError:
        items = [cell]
    return tuple(str(item).strip() for item in items or [] if not is_empty(item))


def right_answer(question: Question) -> str | None:
    """The text of the right choice or, without choices, of the first right answer; None where it is
    not known."""
    if question.label is not None:
        return question.choices[question.label]
    return question.answers[0] if question.answers else None


def find_relevant(
    cell: object, documents: Sequence[Document]
) -> tuple[frozenset[str] | None, tuple[RowError, ...]]:
    """The ids of the relevant documents, None where nothing is known; and what cannot be read.

    The cell lists ids (texts) and 0-based indices (integers), or is one of these. A document with
    an image may be a PDF: its pages are named as `ID#page=N`, and are left out beside all of it.
    What begins with `corpus:` is a document of a corpus, and so is all that is named by a row which
    has no documents.
    """
    column, expected = "relevant", "a list of document ids or 0-based indices"
    if isinstance(cell, int | float) and not is_empty(cell):
        cell = [cell]
    elif isinstance(cell, str) and _INDEX.fullmatch(cell):
        cell = [float(cell)]
    try:
        items = parse_list("bad_relevant", column, expected, cell)
    except RowError as error:
        return None, (error,)
    if items is None:
        return None, ()
    ids = {document.id for document in documents}
    pdfs = {one.id for one in documents if one.image and _may_have_pages(one.image)}
    relevant_ids: set[str] = set()
    errors: list[RowError] = []
    for number, item in enumerate(items):
        index = _read_index(item, documents) if not isinstance(item, str) else None
        if index is not None:
            relevant_ids.add(documents[index].id)
        elif isinstance(item, str) and (item in ids or item.startswith(CORPUS)):
            relevant_ids.add(item)
        elif isinstance(item, str | int) and not documents:
            relevant_ids.add(f"{CORPUS}{item}")
        elif isinstance(item, str) and (page := split_page(item))[0] in pdfs and page[1]:
            relevant_ids.add(name_page(page[0], page[1]))
        else:
            what = "the id or the index of a document of the row"
            errors.append(expected_error("bad_relevant", column, what, item, number))
    wholes = {one: split_page(one)[0] for one in relevant_ids - ids}
    named_twice = {one for one, whole in wholes.items() if whole != one and whole in relevant_ids}
    return frozenset(relevant_ids - named_twice), tuple(errors)


def find_ranks(
    evidence: Sequence[str], relevant: Collection[str], documents: Sequence[Document]
) -> tuple[int, ...]:
    """The ranks, from 1, at which relevant documents are found among the ids of evidence. Of one
    that is relevant as a whole, the first page counts and no other."""
    wanted, ranks = set(relevant), []
    ids = {one.id for one in documents} | {one for one in wanted if one.startswith(CORPUS)}
    for rank, name in enumerate(evidence, start=1):
        found = name if name in wanted else _whole_of(name, ids)
        if found in wanted:
            wanted.remove(found)
            ranks.append(rank)
    return tuple(ranks)


def _may_have_pages(source: str) -> bool:
    return may_be_pdf(source) and split_page(source)[1] is None


def _whole_of(name: str, ids: Collection[str]) -> str:
    """The id of the document that an id is that of a page of; the same id where it is none."""
    whole = split_page(name)[0]
    return whole if name not in ids and whole in ids else name


def _read_text(cell: object, choices: Sequence[str]) -> int | None:
    """By its very characters, else but for case and blanks, else as the same number."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return None  # of a file that has types: an index
    for form in (str, _fold, _number):
        label = form(str(cell))
        matches = [index for index, choice in enumerate(choices) if form(choice) == label]
        if label is not None and len(matches) == 1:
            return matches[0]
    return None


def _read_index(cell: object, choices: Sequence[object]) -> int | None:
    """An integer, also one that pandas made a float."""
    match = None if isinstance(cell, bool) else _INDEX.fullmatch(str(cell))
    return int(match[1]) if match and int(match[1]) < len(choices) else None


def _read_letter(cell: object, choices: Sequence[str]) -> int | None:
    match = _LETTER.fullmatch(cell) if isinstance(cell, str) else None
    index = ascii_uppercase.index(match[1].upper()) if match else len(choices)
    return index if index < len(choices) else None


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().casefold()


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


READERS: Mapping[Reading, Callable[[object, Sequence[str]], int | None]] = {
    "text": _read_text,
    "index": _read_index,
    "letter": _read_letter,
}
