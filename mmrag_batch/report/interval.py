"""A share of rows, and how sure it is."""

import math
from dataclasses import dataclass
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of rows with its Wilson 95% interval."""

    rows: int
    correct: int
    value: float
    low: float
    high: float


def wilson(correct: int, rows: int) -> Accuracy:
    """`correct` of `rows` with Wilson's score interval (Wilson 1927)."""
    share = correct / rows
    centre = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    spread = math.sqrt(share * (1 - share) / rows + (Z / (2 * rows)) ** 2) * Z / (1 + Z**2 / rows)
    # Rounding must not push a bound past the share itself, where that is 0 or 1.
    return Accuracy(rows, correct, share, min(share, centre - spread), max(share, centre + spread))
