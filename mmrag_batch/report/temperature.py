"""The temperature at which probabilities of choices say how often they are right (Guo 2017): one
number that divides the logits, and leaves every prediction as it is.

It is what makes labelled rows most likely. How much it helps is measured on rows that it was not
fitted on, in several folds, each held out once.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.generation.choices import rounded, softmax
from mmrag_batch.report.calibration import calibration_error

COLDEST, HOTTEST = 0.05, 20.0
FOLDS = 5
LEAST = 1e-9
"""What stands for a probability of 0, which is one that was rounded."""
STEPS = 60
"""Halvings of the interval that holds the temperature: to the last digit."""


class Scored(NamedTuple):
    """A row with choices: their probabilities, and which is right. Rows with the same `group` ask
    the same, and are held out together."""

    probabilities: Sequence[float]
    label: int
    group: int = 0


class Fit(NamedTuple):
    """A temperature, and what it does to rows that were held out: their mean negative
    log-likelihood in nats, and the expected calibration error, before and after."""

    temperature: float
    rows: int
    nll_before: float
    nll_after: float
    error_before: float
    error_after: float


def soften(probabilities: Sequence[float], temperature: float) -> tuple[float, ...]:
    """The probabilities of choices at a temperature; 1 leaves them as they are."""
    logits = [math.log(max(LEAST, value)) / temperature for value in probabilities]
    return tuple(map(rounded, softmax(logits)))


def as_text(fit: Fit) -> str:
    """A fit for people."""
    return "\n".join(
        [
            f"temperature: {fit.temperature:.4g} (1 is as the model says), on {fit.rows:,} rows",
            f"held out in {FOLDS} folds: calibration error (ECE) {fit.error_before:.4f} -> "
            f"{fit.error_after:.4f}, negative log-likelihood {fit.nll_before:.4f} -> "
            f"{fit.nll_after:.4f}",
        ]
    )


def fit_temperature(rows: Sequence[Scored]) -> Fit:
    """The temperature of labelled rows, and what such a one does to rows that were held out.

    Raises ValueError where all rows would be held out together.
    """
    logits, labels = _log_probabilities(rows), np.array([row.label for row in rows])
    folds = np.array([row.group % FOLDS for row in rows])
    if len(np.unique(folds)) < 2:
        raise ValueError("all rows ask the same")
    temperatures = np.ones(len(rows))
    for fold in np.unique(folds):
        rest = folds != fold
        temperatures[folds == fold] = _minimise(logits[rest], labels[rest])
    return Fit(
        _minimise(logits, labels),
        len(rows),
        *(
            figure(logits / divisor[:, None], labels)
            for figure in (_nll, _error)
            for divisor in (np.ones(len(rows)), temperatures)
        ),
    )


def _log_probabilities(rows: Sequence[Scored]) -> NDArray[np.float64]:
    """(rows, choices) logits; rows with fewer choices end in minus infinity."""
    logits = np.full((len(rows), max(len(row.probabilities) for row in rows)), -np.inf)
    for line, row in zip(logits, rows):
        line[: len(row.probabilities)] = np.log(np.maximum(LEAST, row.probabilities))
    return logits


def _minimise(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature at which labels are most likely. Their likelihood is convex in its inverse,
    so there is one: where the slope changes its sign."""
    right = logits[np.arange(len(labels)), labels]
    finite = np.where(np.isfinite(logits), logits, 0)
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        expected = (_shares(logits * middle) * finite).sum(axis=1)
        low, high = (low, middle) if (expected - right).sum() > 0 else (middle, high)
    return min(HOTTEST, max(COLDEST, 1 / low))


def _shares(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _nll(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    shares = _shares(logits)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(shares, LEAST)).mean())


def _error(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    shares = _shares(logits)
    right = shares.argmax(axis=1) == labels
    return calibration_error(list(shares.max(axis=1)), list(right))
