"""How likely the right answer of a row is to a generator that has seen one of its documents.

    likelihoods.jsonl    what they are of, then a line a row, written as it is found

The file stays: a run that was killed goes on there, and one with other settings need not ask again.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, groupby
from pathlib import Path

from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Evidence, Question, Row
from mmrag_batch.stages import in_batches
from mmrag_batch.train.held_out import MIN_PROBABILITY
from mmrag_batch.train.supervision import Likelihoods, needs_likelihood
from mmrag_batch.train.text_loss import TextLoss

TEXTS = 64
"""Rows without choices that are asked about at once."""


@dataclass(slots=True)
class _Pending:
    """A row some of whose documents have not been judged yet."""

    remaining: int
    likelihoods: dict[str, float]


def measure_likelihoods(
    rows: Iterable[Row],
    answerer: Answerer,
    text_loss: TextLoss,
    spec: PromptSpec,
    file: Path,
    subject: str,
    *,
    total: int | None = None,
) -> Likelihoods:
    """Ask about each document of each row that `needs_likelihood`, unless `file` holds the row.

    `answerer` is asked about rows with choices, `text_loss` about others. `spec` is that of both,
    `total` how many rows there are. `subject` names the rows, the
    generator and how it is asked: a file of another one is replaced. Documents that cannot be shown
    (a broken image, too long a text, a picture where the question's own takes the only place) are
    left out.
    """
    likelihoods = _read(file, subject)
    origins: dict[int, tuple[int, str]] = {}
    pending: dict[int, _Pending] = {}
    numbers = count()

    def questions() -> Iterator[Row]:
        for row in progress.each(rows):
            if row.number in likelihoods or not needs_likelihood(row):
                continue
            assert row.question is not None  # it needs a likelihood
            candidates = [(Evidence(document, 0.0),) for document in row.question.documents]
            shown = [evidence for evidence in candidates if _is_shown(row.question, evidence, spec)]
            pending[row.number] = _Pending(len(shown), {})
            for evidence in shown:
                number = next(numbers)
                origins[number] = (row.number, evidence[0].document.id)
                yield replace(row, number=number, evidence=evidence, problems=[])

    step = Progress("Likelihoods", total, "rows")
    with step as progress, file.open("a", encoding="utf-8") as stream:
        for asked_number, likelihood in _ask(questions(), answerer, text_loss):
            number, document_id = origins.pop(asked_number)
            pending_row = pending[number]
            pending_row.remaining -= 1
            if likelihood is not None:
                pending_row.likelihoods[document_id] = likelihood
            if pending_row.remaining == 0:
                del pending[number]
                likelihoods[number] = pending_row.likelihoods
                stream.write(json.dumps([number, pending_row.likelihoods]) + "\n")
                stream.flush()
    return likelihoods


def _is_shown(question: Question, evidence: tuple[Evidence], spec: PromptSpec) -> bool:
    """Whether a prompt with the evidence is another one than without."""
    shown, bare = (build_prompt(question, items, spec) for items in (evidence, ()))
    return shown != bare


def _ask(
    rows: Iterable[Row], answerer: Answerer, text_loss: TextLoss
) -> Iterator[tuple[int, float | None]]:
    """The number of each row, in any order, and the log-likelihood of its right answer; None where
    its evidence cannot be shown."""
    for has_choices, group in groupby(rows, key=_has_choices):
        if has_choices:
            yield from ((row.number, _log_likelihood(row)) for row in answerer(group))
            continue
        for batch in in_batches(group, TEXTS):
            for row, loss in zip(batch, text_loss(batch), strict=True):
                yield row.number, None if loss is None else -loss


def _has_choices(row: Row) -> bool:
    return row.question is not None and bool(row.question.choices)


def _log_likelihood(row: Row) -> float | None:
    assert row.question is not None  # it was answered
    assert row.question.label is not None
    shown = [item.document for item in row.evidence]
    if row.prediction is None or not shown or shown[0] not in row.question.documents:
        return None  # there was no room for it, or for all of it
    return math.log(max(MIN_PROBABILITY, row.prediction.probabilities[row.question.label]))


def _read(file: Path, subject: str) -> dict[int, dict[str, float]]:
    """What was found before; a torn last line is cut off, a file of something else emptied."""
    header = json.dumps(subject).encode() + b"\n"
    data = file.read_bytes() if file.is_file() else b""
    complete_lines = data[: data.rfind(b"\n") + 1]
    if not complete_lines.startswith(header):
        complete_lines = header
    if complete_lines != data:
        file.write_bytes(complete_lines)
    return dict(json.loads(line) for line in complete_lines.splitlines()[1:])
