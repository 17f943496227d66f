"""What is wrong with a table and its images, by line, found before a GPU is touched."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mmrag_batch.errors import RowError
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Document, Problem, Question, Row
from mmrag_batch.sources import document_problem
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.formats import used_columns
from mmrag_batch.table.names import AS_THEY_ARE, Names, tell_columns
from mmrag_batch.table.output import check_names_are_free
from mmrag_batch.table.rows import read_header, read_rows, scan
from mmrag_batch.table.truth import Labels, Reading, find_relevant, is_labelled, read_labels

REMEMBERED = 100_000
"""Digests of good images that are kept, so that an image of many rows is decoded once."""


class Finding(NamedTuple):
    """A problem of the row that starts at `line`. A fatal one leaves the row without an answer."""

    line: int
    id: str
    problem: Problem
    fatal: bool


def check_table(
    path: Path,
    images: ImageStore,
    reading: Reading | None = None,
    *,
    names: Names = AS_THEY_ARE,
) -> tuple[Labels, Iterator[Finding]]:
    """How the labels of a table are read (in `reading` alone, if given), and every problem of it,
    in the order of its lines; `names` are what it calls our columns.

    Raises what `read_header` and `scan` raise for a file that cannot be read as a table, and
    InputError where `predict` would have to name two columns the same.
    """
    columns = read_header(path, names)
    check_names_are_free(columns)
    labels = read_labels(path, reading, names=names, records=scan(path, names))
    header = (
        Finding(1, "header", Problem("unused", note), fatal=False)
        for note in tell_columns(columns, names)
    )
    return labels, chain(header, _check_rows(path, images, labels, names))


def facts_of(
    path: Path, labels: Labels, findings: Iterable[Finding], names: Names
) -> dict[str, Any]:
    """The same for programs; `unanswerable` counts the rows that would get no answer."""
    problems = [
        {
            "line": line,
            "id": name,
            "code": problem.code,
            "message": problem.message,
            "fatal": fatal,
        }
        for line, name, problem, fatal in findings
    ]
    columns = read_header(path, names)
    return {
        "table": str(path),
        "columns": columns,
        "used": used_columns(columns, names),
        "labels": {
            "read_as": dict(labels.by_reading()),
            "disputed": labels.disputed,
            "unreadable": labels.unreadable,
        },
        "problems": problems,
        "unanswerable": len({problem["line"] for problem in problems if problem["fatal"]}),
    }


def _check_rows(path: Path, images: ImageStore, labels: Labels, names: Names) -> Iterator[Finding]:
    valid_digests: set[str] = set()
    notes: set[str] = set()
    for row in read_rows(path, names=names):
        for note in row.notes:
            if note not in notes:
                yield Finding(row.line, row.id, Problem("unused", note), fatal=False)
            notes.add(note)
        if row.error is not None:
            yield Finding(row.line, row.id, row.error, fatal=True)
        elif row.question is not None:
            question = with_pages(row.question, images)
            for problem, fatal in _check_question(question, images, valid_digests):
                yield Finding(row.line, row.id, problem, fatal)
            for problem in _check_truth(row, row.question, question.documents, labels):
                yield Finding(row.line, row.id, problem, fatal=False)


def _check_question(
    question: Question, images: ImageStore, valid_digests: set[str]
) -> Iterator[tuple[Problem, bool]]:
    if question.image is not None and (
        error := _check_image(question.image, images, valid_digests)
    ):
        yield Problem(error.code, str(error)), True
    for document in question.documents:
        if document.image is not None and (
            error := _check_image(document.image, images, valid_digests)
        ):
            yield document_problem(document, error), False


def _check_truth(
    row: Row, question: Question, pages: Iterable[Document], labels: Labels
) -> Iterator[Problem]:
    """Problems of `label` and `relevant`, which no answer needs but every evaluation does. `pages`
    are the question's documents with those of PDFs."""
    cell, choices = row.cells.get("label"), question.choices
    if choices and is_labelled(cell, choices) and labels.find(cell, choices) is None:
        yield Problem("bad_label", f"label {cell!r} is no choice, nor the index or letter of one")
    relevant, errors = find_relevant(row.cells.get("relevant"), question.documents)
    yield from (Problem(error.code, str(error)) for error in errors)
    if relevant:
        ids = {document.id for document in (*question.documents, *pages)}
        for name in sorted(relevant - ids):
            yield Problem("bad_relevant", f"relevant: {name!r} is no page that can be read")


def _check_image(source: str, images: ImageStore, valid_digests: set[str]) -> RowError | None:
    try:
        digest = images.digest(source)
        if digest not in valid_digests:
            images.load(source)
    except RowError as error:
        return error
    if len(valid_digests) >= REMEMBERED:
        valid_digests.clear()
    valid_digests.add(digest)
    return None
