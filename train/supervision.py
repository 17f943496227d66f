"""What tells the retriever which documents help, where nobody has said so.

relevant     the table's `relevant` column
answer       that, where it is filled; else the documents whose text holds the right choice
likelihood   that, where it is filled; else the generator: how likely the right choice is to it
             when it has seen this document alone (REPLUG, arXiv:2301.12652)
"""

import math
import re
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Literal

from mmrag_batch.records import Question, Row

SupervisionName = Literal["relevant", "answer", "likelihood"]

SHARPNESS = 5.0
"""Factor on log likelihoods before they become shares: twice as likely is 32 times the share."""
LEAST_GAIN = math.log(1.5)
"""A row teaches nothing where the best document makes its answer less than this likelier than the
median one does: what it needs is in its picture, or in none of them."""

Likelihoods = Mapping[int, Mapping[str, float]]
"""Row number -> document id -> log of the right choice's probability."""


def by_relevant(row: Row) -> Mapping[str, float]:
    """The documents that `relevant` names."""
    relevant = row.question.relevant if row.question is not None else None
    return dict.fromkeys(relevant or (), 1.0)


def by_answer(row: Row) -> Mapping[str, float]:
    """Those that `relevant` names; where it is not filled, those that hold the right choice, if
    there are others, too: what all of them hold tells nothing."""
    question = row.question
    if question is None or question.relevant is not None:
        return by_relevant(row)
    if question.label is None:
        return {}
    holds = _whole(question.choices[question.label])
    found = [d.id for d in question.documents if d.text and holds.search(_plain(d.text))]
    return dict.fromkeys(found, 1.0) if len(found) < len(question.documents) else {}


def by_likelihood(likelihoods: Likelihoods, row: Row) -> Mapping[str, float]:
    """Those that `relevant` names; where it is not filled, shares by likelihood."""
    question = row.question
    if question is None or question.relevant is not None:
        return by_relevant(row)
    found = likelihoods.get(row.number, {})
    if not found:
        return {}
    best = max(found.values())
    if best - median(found.values()) < LEAST_GAIN:
        return {}
    return {name: math.exp(SHARPNESS * (value - best)) for name, value in found.items()}


def needs_likelihood(row: Row) -> bool:
    """Whether the generator must be asked about a row: it has a right choice, more than one
    document, and nothing says which of them help."""
    question: Question | None = row.question
    return (
        question is not None
        and question.relevant is None
        and question.label is not None
        and len(question.documents) > 1
    )


def supervision(name: SupervisionName, likelihoods: Likelihoods) -> partial[Mapping[str, float]]:
    """The supervision of that name."""
    kinds = {
        "relevant": partial(by_relevant),
        "answer": partial(by_answer),
        "likelihood": partial(by_likelihood, likelihoods),
    }
    return kinds[name]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _whole(choice: str) -> re.Pattern[str]:
    """Matches a choice in a plain text, but not inside of a longer word or number."""
    return re.compile(rf"(?<![\w.,])(?<!\w-){re.escape(_plain(choice))}(?![\w]|[.,-]\w)")
