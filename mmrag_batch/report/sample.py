"""Which rows a page shows where it cannot show all: those that tell most, and some at random."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

Reason = Literal[
    "flipped", "confident mistake", "no answer", "least confident", "at random", "all are shown"
]
SHARES: dict[Reason, float] = {
    "flipped": 0.3,
    "confident mistake": 0.35,
    "no answer": 0.15,
    "least confident": 0.15,
}
"""Of the rows that are shown, the most for each reason, in this order; the others are drawn."""
SEED = 0
WORDS: dict[Reason, str] = {
    "flipped": "that the other run answers otherwise",
    "confident mistake": "that are wrong, the most confident first",
    "no answer": "without an answer",
    "least confident": "of the least confident others",
    "at random": f"drawn at random from all others (seed {SEED})",
}


class Chosen(NamedTuple):
    """A row by its number, and why it is shown."""

    number: int
    reason: Reason


def choose(facts: pd.DataFrame, count: int, flipped: Sequence[int] = ()) -> list[Chosen]:
    """At most `count` rows, all of them in order where there are no more. `flipped` are rows that
    another run answers otherwise, the most telling first."""
    if len(facts) <= count:
        return [Chosen(number, "all are shown") for number in range(len(facts))]
    confidence = facts["confidence"].astype(float)
    is_wrong = facts["right"].eq(False) & facts["status"].ne("error")
    mistakes = confidence[is_wrong].fillna(-1).sort_values(ascending=False, kind="stable")
    least = confidence[confidence.notna()].sort_values(kind="stable")
    candidates: dict[Reason, Sequence[int]] = {
        "flipped": flipped,
        "confident mistake": list(mistakes.index),
        "no answer": list(facts.index[facts["status"].eq("error")]),
        "least confident": list(least.index[: 2 * count]),
    }
    chosen: dict[int, Reason] = {}
    for reason, numbers in candidates.items():
        room = max(1, int(count * SHARES[reason]))
        fresh = [number for number in numbers if number not in chosen][:room]
        chosen |= dict.fromkeys(fresh[: count - len(chosen)], reason)
    others = np.array([number for number in range(len(facts)) if number not in chosen])
    drawn = np.random.default_rng(SEED).permutation(others)[: count - len(chosen)]
    chosen |= dict.fromkeys(sorted(map(int, drawn)), "at random")
    return [Chosen(int(number), reason) for number, reason in chosen.items()]


def describe(chosen: Sequence[Chosen], rows: int, room: int) -> str:
    """The rule, in words, where there is room for so many of the rows chosen."""
    shown = chosen[:room]
    counts = Counter(one.reason for one in shown)
    if counts["all are shown"]:
        which = f"All {rows:,} rows, in the order of the table."
        if len(shown) < rows:
            which = f"The first {len(shown):,} of {rows:,} rows."
    else:
        words = [f"{counts[name]:,} {text}" for name, text in WORDS.items() if counts[name]]
        which = f"{len(shown):,} of {rows:,} rows"
        which += f", for these reasons: {'; '.join(words)}." if words else "."
    return which + (" There is no room on the page for more." if room < len(chosen) else "")
