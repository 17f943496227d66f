"""Two runs on the same rows: which answers became right, which became wrong, and whether that may
be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mmrag_batch.report.interval import Accuracy, wilson


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of two outputs that ask the same, as `other` has them by their numbers here: those in
    which both have the same label, and so can be compared, and how many cannot: rows without a
    valid label, rows that one output alone has, rows that ask something else."""

    other: Mapping[int, int]
    unlabelled: int
    only_here: int
    only_there: int
    differing: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another run beside this one, on the `rows` that both were asked. `became_right` and
    `became_wrong` are numbers of rows here that the other answered wrong, and right; `p` is that of
    McNemar's exact test; `differences` name what of the runs differs, and what it is here and
    there."""

    name: str
    pairs: Pairs
    rows: int
    here: Accuracy | None
    there: Accuracy | None
    became_right: Sequence[int]
    became_wrong: Sequence[int]
    p: float
    differences: Sequence[tuple[str, str, str]]


def match(here: pd.DataFrame, there: pd.DataFrame) -> Pairs:
    """Rows by their ids where both outputs have them throughout, else by their place; for the
    columns see `facts.py`."""
    has_ids = bool(len(here) and len(there))
    has_ids = has_ids and bool(here["id"].notna().all() and there["id"].notna().all())
    names = list(here["id"]) if has_ids else list(range(len(here)))
    others = list(there["id"]) if has_ids else list(range(len(there)))
    numbers = {name: number for number, name in enumerate(others)}
    both = {number: numbers[name] for number, name in enumerate(names) if name in numbers}
    asked, meant = list(here["meaning"]), list(there["meaning"])
    same = {number: other for number, other in both.items() if asked[number] == meant[other]}
    known_here, known_there = list(here["right"].notna()), list(there["right"].notna())
    labelled = {
        number: other for number, other in same.items() if known_here[number] and known_there[other]
    }
    return Pairs(
        labelled,
        unlabelled=len(same) - len(labelled),
        only_here=len(names) - len(both),
        only_there=len(others) - len(both),
        differing=len(both) - len(same),
    )


def compare(
    name: str,
    here: pd.DataFrame,
    there: pd.DataFrame,
    differences: Sequence[tuple[str, str, str]],
) -> Comparison:
    """Compare two outputs by their facts; rows that flipped, the most confident first."""
    return compare_pairs(name, here, there, match(here, there), differences)


def compare_pairs(
    name: str,
    here: pd.DataFrame,
    there: pd.DataFrame,
    pairs: Pairs,
    differences: Sequence[tuple[str, str, str]] = (),
) -> Comparison:
    """The same of rows that were matched before."""
    ours, theirs = list(here["right"]), list(there["right"])
    confidence = here["confidence"].astype(float).fillna(-1)
    order = sorted(pairs.other, key=lambda number: -confidence[number])
    right = [one for one in order if ours[one] and not theirs[pairs.other[one]]]
    wrong = [one for one in order if not ours[one] and theirs[pairs.other[one]]]
    rows = len(pairs.other)
    count_here = sum(bool(ours[one]) for one in pairs.other)
    count_there = sum(bool(theirs[one]) for one in pairs.other.values())
    return Comparison(
        name,
        pairs,
        rows,
        wilson(count_here, rows) if rows else None,
        wilson(count_there, rows) if rows else None,
        right,
        wrong,
        mcnemar(len(right), len(wrong)),
        differences,
    )


def mcnemar(one_way: int, other_way: int) -> float:
    """The p-value of McNemar's exact test (two-sided, binomial with 1/2) that as many rows flip one
    way as the other, given how many do (McNemar 1947); 1 where none does."""
    flips, fewer = one_way + other_way, min(one_way, other_way)
    term, total = 1, 1
    for k in range(fewer):
        term = term * (flips - k) // (k + 1)
        total += term
    p: float = 2 * total / 2**flips
    return min(1.0, p)
