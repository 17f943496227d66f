"""The records that travel through a run: plain data, standard library only, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Status = Literal["ok", "degraded", "error", "abstained"]
"""`error`: no answer; `degraded`: answered without its broken documents; `abstained`: answered, and
withheld since it was not sure enough; else `ok`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row or a document could not be used: a word for machines, a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One candidate: a text, an image, or an image with a text.

    `image` is the source as the table gives it: a path under the image root or a `data:` URI, and
    perhaps a page of what it names.
    """

    id: str
    text: str | None
    image: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What one input row asks.

    `choices` is empty for a free-form question. What is true is set where it is needed
    (`table/truth.py`): `label` indexes `choices`, `answers` are right without choices; `relevant`
    holds document ids, none of them where no document helps. None, or empty, where nothing is
    known.
    """

    text: str
    image: str | None
    choices: tuple[str, ...]
    documents: tuple[Document, ...]
    label: int | None = None
    relevant: frozenset[str] | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """A document kept for a question. `score` is cosine times the learned temperature."""

    document: Document
    score: float


class Found(NamedTuple):
    """What a search of documents that all rows share has found for a question: a digest of the
    evidence, all of it that a generator is shown, and the version of what was searched."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class TextProbability:
    """How probable a text was that a generator wrote token by token, from 0 to 1.

    `whole` is that of all of it: the product of its tokens' probabilities, each given those before.
    `per_token` is their geometric mean, which does not fall with the length. The end-of-text token
    is one of them where it was generated, and none where the text was cut off at its longest.
    """

    whole: float
    per_token: float


class Usage(NamedTuple):
    """Tokens that a server counted: those of prompts, and those that were written."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer. `index` and `probabilities` (one a choice, summing to 1) are for choices only,
    `text_probability` is for a text in free form. An engine that does not tell leaves the
    probabilities empty, and None."""

    text: str
    index: int | None = None
    probabilities: tuple[float, ...] = ()
    text_probability: TextProbability | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a question, as an output shows it.

    `problems` say why there is no answer (`error`), or which documents were left out (`degraded`,
    and perhaps `abstained`).
    `evidence` holds ids of documents and their scores, best first.
    """

    status: Status
    prediction: str | None = None
    index: int | None = None
    probabilities: tuple[float, ...] = ()
    evidence: tuple[tuple[str, float], ...] = ()
    problems: tuple[Problem, ...] = ()
    text_probability: TextProbability | None = None


@dataclass(slots=True)
class Row:
    """One input row on its way through a run; each stage fills in its part.

    `number` counts rows from 0, `line` is the line of the file where the row starts, `cells` are
    the input columns as they were read. A row with `error` passes the remaining stages untouched;
    `problems` are documents that were left out (the row is still answered, as `degraded`).
    `images` are the SHA-256 (hex) of the image files that the question names, by source, None for
    one that cannot be read. `notes` are what was read otherwise than it was written, or not at all.
    `usage` is what it cost, where somebody counts. `found` is set where documents that rows share
    were searched.
    """

    number: int
    line: int
    id: str
    cells: Mapping[str, object]
    question: Question | None = None
    evidence: tuple[Evidence, ...] = ()
    prediction: Prediction | None = None
    problems: list[Problem] = field(default_factory=list)
    error: Problem | None = None
    images: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    found: Found | None = None
