"""Scoring a row's own choices: the probability of each under decoding restricted to them.

An answer is a sequence of tokens that ends with the end token. Restricted to the row's answers, a
model decides only where two of them part; each such fork is one softmax over the tokens that go on.
Letters part at once, so they take one decoding step, and so do most short texts. Nothing is parsed,
nothing is guessed, and the probabilities sum to 1.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mmrag_batch.records import Prediction

Option = tuple[int, ...]
"""Token ids, the end token included, so that no option is the beginning of another."""


REMEMBERED = 4096
"""Sets of answers whose forks are remembered: a table asks the same ones over and over."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Where answers part: behind `prefix`, one of `tokens` follows.

    `followers` are, for each of the tokens, the indices of the answers that go on with it.
    """

    prefix: Option
    tokens: tuple[int, ...]
    followers: tuple[tuple[int, ...], ...]


@lru_cache(REMEMBERED)
def find_forks(answers: tuple[Option, ...]) -> tuple[Fork, ...]:
    """Every fork of a set of different answers, shorter prefixes first."""
    forks = []
    groups: list[tuple[Option, tuple[int, ...]]] = [((), tuple(range(len(answers))))]
    while groups:
        prefix, members = groups.pop(0)
        if len(members) < 2:
            continue
        members_by_token: dict[int, list[int]] = {}
        for member in members:
            members_by_token.setdefault(answers[member][len(prefix)], []).append(member)
        if len(members_by_token) > 1:
            followers = tuple(tuple(group) for group in members_by_token.values())
            forks.append(Fork(prefix, tuple(members_by_token), followers))
        groups += [((*prefix, token), tuple(group)) for token, group in members_by_token.items()]
    return tuple(forks)


def combine(
    count: int, forks: Iterable[Fork], logits: Iterable[Sequence[float]]
) -> tuple[float, ...]:
    """The probability of each of `count` answers, given the logits of each fork's tokens."""
    probabilities = [1.0] * count
    for fork, fork_logits in zip(forks, logits, strict=True):
        for probability, members in zip(softmax(fork_logits), fork.followers, strict=True):
            for member in members:
                probabilities[member] *= probability
    return tuple(probabilities)


def softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """The shares of the options, given their logits.

    Raises ValueError for a logit that is not a finite number.
    """
    if not all(map(math.isfinite, logits)):
        raise ValueError("the model gave a logit that is not a finite number")
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def rounded(probability: float) -> float:
    """A probability as it is kept, to 6 significant digits: a small one says how sure a model was
    that it is not this."""
    return float(f"{probability:.6g}")


def choose(choices: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    """The most probable choice; the first of equals."""
    index = probabilities.index(max(probabilities))
    return Prediction(text=choices[index], index=index, probabilities=tuple(probabilities))
