"""What a confidence is worth: whether it is what it says, and what abstaining below one buys."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15


class Bin(NamedTuple):
    """The rows whose confidence is in (low, high]: how many, its mean, and how many are right."""

    low: float
    high: float
    rows: int
    confidence: float
    correct: int


class Point(NamedTuple):
    """What is answered from a confidence of `threshold` on: rows, and how many are right.
    `coverage` is their share of all labelled rows."""

    threshold: float
    rows: int
    correct: int
    coverage: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.rows


def reliability(confidences: Sequence[float], correct: Sequence[bool]) -> list[Bin]:
    """Those of 15 bins of equal width, (0, 1/15] the first, that have rows (Guo 2017)."""
    values, hits = np.asarray(confidences, float), np.asarray(correct, float)
    numbers = np.clip(np.ceil(values * BINS), 1, BINS)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        rows, mean = int(inside.sum()), float(values[inside].mean())
        bins.append(Bin((number - 1) / BINS, number / BINS, rows, mean, int(hits[inside].sum())))
    return bins


def calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Expected calibration error over these bins (Guo 2017)."""
    bins = reliability(confidences, correct)
    return sum(abs(one.correct - one.confidence * one.rows) for one in bins) / len(confidences)


def coverage(confidences: Sequence[float], correct: Sequence[bool], rows: int) -> list[Point]:
    """A point for each confidence that rows have, from the most confident down: no threshold can
    part rows of the same. `rows` counts all labelled ones, those without a confidence as well
    (El-Yaniv and Wiener 2010)."""
    values, hits = np.asarray(confidences, float), np.asarray(correct, bool)
    order = np.argsort(-values, kind="stable")
    values, right = values[order], np.cumsum(hits[order])
    last = np.flatnonzero(np.append(values[1:] != values[:-1], [True] * (len(values) > 0)))
    return [
        Point(float(values[at]), int(at) + 1, int(right[at]), (int(at) + 1) / rows) for at in last
    ]


def find_threshold(points: Sequence[Point], accuracy: float) -> Point | None:
    """The point that answers most rows among those that are at least so accurate."""
    fitting = [point for point in points if point.accuracy >= accuracy]
    return max(fitting, key=lambda point: point.rows, default=None)
