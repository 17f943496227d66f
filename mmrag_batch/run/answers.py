"""What a store keeps: answers as bytes with a checksum, without what another table would not share,
such as line numbers; and who gave them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mmrag_batch.generation.choices import rounded
from mmrag_batch.masking import mask
from mmrag_batch.records import Answer, Problem, Row, Status, TextProbability

STATUSES: tuple[Status, ...] = ("ok", "degraded", "error")
"""Those of answers that are kept; which of them an output withholds is its own affair."""
Counts = dict[Status, int]
"""How many rows have each status."""
DIGITS_OF_SCORES = 4


class Kept(NamedTuple):
    """An answer as it is kept: its status is an index of STATUSES, `answer` is JSON.

    `start` is the run that gave it, `images` the digest of the image files that it rests on.
    """

    start: int
    status: int
    images: bytes
    answer: bytes


@dataclass(slots=True)
class Start:
    """A process at work on an output, and how far it came. Times are seconds since 1970.

    `first` and `stop` bound its rows, `kept` of which had an answer. `rows` counts those that are
    done by now, by status; `asked` the questions that were, in `seconds` without loading. `origin`
    is the store where it began and its number there, `id` its number where it is read. `usage` are
    tokens by kind, as servers count them.
    """

    first: int
    stop: int
    kept: int
    rows: Counts
    time: float
    process: Mapping[str, object]
    versions: Mapping[str, str]
    asked: int = 0
    seconds: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)
    origin: tuple[str, int] = ("", 0)
    id: int = field(default=0, compare=False)


def no_rows() -> Counts:
    """Counts of none."""
    return dict.fromkeys(STATUSES, 0)


def rate(rows: int, seconds: float) -> float | None:
    """Rows a second; None where nothing was asked."""
    return rows / seconds if rows and seconds > 0 else None


def in_words(counts: Mapping[Status, int]) -> str:
    """Counts for people: `7 ok, 1 degraded, 0 error`."""
    return ", ".join(f"{rows:,} {status}" for status, rows in counts.items())


def tokens_in_words(usage: Mapping[str, int]) -> str:
    """Tokens for people: `60 prompt and 6 completion tokens`."""
    return " and ".join(f"{tokens:,} {kind}" for kind, tokens in usage.items()) + " tokens"


def answer_of(row: Row) -> Answer:
    """What became of a row that has been through the stages."""
    evidence = tuple(
        (item.document.id, round(item.score, DIGITS_OF_SCORES)) for item in row.evidence
    )
    if row.error is not None:
        return Answer("error", evidence=evidence, problems=(_masked(row.error),))
    assert row.prediction is not None  # a row without an error has one
    written = row.prediction.text_probability
    return Answer(
        "degraded" if row.problems else "ok",
        row.prediction.text,
        row.prediction.index,
        tuple(map(rounded, row.prediction.probabilities)),
        evidence,
        tuple(map(_masked, row.problems)),
        None
        if written is None
        else TextProbability(rounded(written.whole), rounded(written.per_token)),
    )


def _masked(problem: Problem) -> Problem:
    """The problem without secrets, whoever said it: a server may repeat the key it was sent."""
    return Problem(problem.code, mask(problem.message))


def to_kept(answer: Answer, *, start: int, images: bytes) -> Kept:
    """An answer as it is kept."""
    problems = [(problem.code, problem.message) for problem in answer.problems]
    written = answer.text_probability
    values = (
        *(answer.prediction, answer.index, answer.probabilities, answer.evidence, problems),
        *(() if written is None else (written.whole, written.per_token)),
    )
    return Kept(start, STATUSES.index(answer.status), images, json.dumps(values).encode())


def to_answer(kept: Kept) -> Answer:
    """The answer that is kept."""
    values = json.loads(kept.answer.decode())  # of bytes it would have to find the encoding
    prediction, index, probabilities, evidence, problems, *written = values
    return Answer(
        STATUSES[kept.status],
        prediction,
        index,
        tuple(probabilities),
        tuple((name, score) for name, score in evidence),
        tuple(Problem(code, message) for code, message in problems),
        TextProbability(*written) if written else None,
    )


def checksum(key: bytes, kept: Kept) -> bytes:
    """8 bytes that belong to this answer under this key alone."""
    head = b"%d %d %d " % (kept.start, kept.status, len(kept.images))
    return hashlib.blake2b(head + kept.images + kept.answer, key=key, digest_size=8).digest()


def read_kept(key: bytes, *columns: object) -> Kept | None:
    """The answer in the columns of a store; None if it is not what was put there."""
    *values, expected = columns
    try:
        kept = Kept(*values)  # type: ignore[arg-type]  # whatever damage made of them
        return kept if expected == checksum(key, kept) else None
    except (TypeError, ValueError):
        return None


def hash_note(name: str, note: object) -> str:
    """What belongs to a note (JSON) under this name alone."""
    return hashlib.blake2b(f"{name} {json.dumps(note)}".encode(), digest_size=8).hexdigest()
