"""What tells the retriever which documents help, where nobody has said so.

relevant     the table's `relevant` column
answer       that, where it is filled; else the documents whose text holds the right answer
likelihood   that, where it is filled; else the generator: how likely the right answer is to it
             when it has seen this document alone (REPLUG, arXiv:2301.12652)
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from random import Random
from statistics import median
from typing import Literal

from mmrag_batch.records import Question, Row
from mmrag_batch.table.truth import right_answer
from mmrag_batch.train.wording import holds, normalized

SupervisionName = Literal["relevant", "answer", "likelihood"]

SHARPNESS = 5.0
"""Factor on log likelihoods before they become shares: twice as likely is 32 times the share."""
LEAST_GAIN = math.log(1.5)
"""A row teaches nothing where the best document makes its answer less than this likelier than the
median one does: what it needs is in its picture, or in none of them."""

SAMPLE = 1000
"""Documents, of all rows, that tell how common a choice is."""

Likelihoods = Mapping[int, Mapping[str, float]]
"""Row number -> document id -> log of the right answer's probability."""


def by_relevant(row: Row) -> Mapping[str, float]:
    """The documents that `relevant` names."""
    relevant = row.question.relevant if row.question is not None else None
    return dict.fromkeys(relevant or (), 1.0)


class ByAnswer:
    """Those that `relevant` names; where it is not filled, those that hold the right answer.

    A row teaches nothing where they hold it by chance: where all of them do, or where the answer is
    so common among the documents of all rows that one of its own would more likely hold it than
    not. Whether a picture shows the answer is not known. `texts` are those of all rows, of which a
    sample is kept.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._sample = [normalized(text) for text in _reservoir_sample(texts, SAMPLE)]
        self._frequency = cache(self._count)

    def __call__(self, row: Row) -> Mapping[str, float]:
        question = row.question
        if question is None or question.relevant is not None:
            return by_relevant(row)
        if (choice := right_answer(question)) is None:
            return {}
        texts = {document.id: document.text for document in question.documents if document.text}
        matching_ids = [name for name, text in texts.items() if holds(normalized(text), choice)]
        chance = 1 - (1 - self._frequency(choice)) ** len(texts)
        if len(matching_ids) == len(question.documents) or chance > 0.5:
            return {}
        unknown_ids = (document.id for document in question.documents if document.image)
        return {**dict.fromkeys(unknown_ids, math.nan), **dict.fromkeys(matching_ids, 1.0)}

    def _count(self, choice: str) -> float:
        """The share of all documents that hold a choice."""
        hits = sum(holds(text, choice) for text in self._sample)
        return hits / max(1, len(self._sample))


def texts_of(rows: Iterable[Row]) -> Iterable[str]:
    """The texts of all documents."""
    for row in rows:
        for document in row.question.documents if row.question is not None else ():
            if document.text:
                yield document.text


def _reservoir_sample(items: Iterable[str], size: int) -> list[str]:
    """`size` of the items at random, each as likely as any other; all where there are fewer."""
    random = Random(0)
    sample: list[str] = []
    for number, item in enumerate(items):
        if number < size:
            sample.append(item)
        elif (index := random.randrange(number + 1)) < size:
            sample[index] = item
    return sample


def by_likelihood(likelihoods: Likelihoods, row: Row) -> Mapping[str, float]:
    """Those that `relevant` names; where it is not filled, shares by likelihood. A document that
    the generator could not be asked about may help or not: that is not known."""
    question = row.question
    if question is None or question.relevant is not None:
        return by_relevant(row)
    log_likelihoods = likelihoods.get(row.number, {})
    if not log_likelihoods:
        return {}
    best = max(log_likelihoods.values())
    if best - median(log_likelihoods.values()) < LEAST_GAIN:
        return {}
    return {
        document.id: math.exp(SHARPNESS * (log_likelihoods.get(document.id, math.nan) - best))
        for document in question.documents
    }


def needs_likelihood(row: Row) -> bool:
    """Whether the generator must be asked about a row: it has a right answer, more than one
    document, and nothing says which of them help."""
    question: Question | None = row.question
    return (
        question is not None
        and question.relevant is None
        and right_answer(question) is not None
        and len(question.documents) > 1
    )
