"""How good an output of `predict` is: accuracy, retrieval, calibration.

- Accuracy counts rows with choices and a valid label; a row without an answer counts as wrong.
- Retrieval counts rows with a relevant document. The output holds only the evidence that the
  generator was given, so ranks are known up to the longest evidence of the file, at most 5: every
  figure is at that depth and named so (`recall@3`). A relevant document that was not kept has no
  rank and scores 0. recall@k is the share of questions with a relevant document in their first k.
- The expected calibration error takes rows that have a confidence and a valid label.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from mmrag_batch.errors import ConfigError, InputError, RowError
from mmrag_batch.records import Row
from mmrag_batch.table.cells import find_label, parse_choices
from mmrag_batch.table.rows import read_header, read_rows
from mmrag_batch.table.values import is_empty

MAX_DEPTH = 5
BINS = 15
FACTS = ("status", "correct", "confidence", "kept", "ranks", "relevant")
"""What is needed of a row; see `_facts`."""
NEEDED = ("prediction_index", "confidence", "evidence", "status")
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of rows with its Wilson 95% interval."""

    rows: int
    correct: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over `rows` questions; ranks are known up to `depth`. `recall` maps k to recall@k."""

    rows: int
    depth: int
    recall: dict[int, float]
    mrr: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of some rows; None where no row has what a figure needs."""

    rows: int
    ok: int
    degraded: int
    error: int
    accuracy: Accuracy | None
    mean_confidence: float | None
    calibration_error: float | None
    retrieval: Retrieval | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of a whole file, and of the rows of each value of each column asked for."""

    overall: Scores
    by: dict[str, dict[str, Scores]]


def evaluate(path: Path, *, by: Sequence[str] = ()) -> Metrics:
    """Measure an output of `predict`.

    Raises InputError for a table that is no such output, ConfigError for an unknown column in `by`,
    and what `read_header` raises.
    """
    columns = read_header(path)
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; give the file that `predict` wrote."
        )
    unknown = [name for name in by if name not in columns]
    if unknown:
        raise ConfigError(
            f"--by: {path} has no column {', '.join(unknown)}; it has {', '.join(columns)}."
        )
    column_values: dict[str, list[str]] = {column: [] for column in by}
    row_facts = []
    for row in read_rows(path):  # texts and documents are not kept: a file may be large
        row_facts.append(_facts(row))
        for column, values in column_values.items():
            values.append(str(row.cells.get(column, "")))
    facts = pd.DataFrame(row_facts, columns=FACTS)
    depth = min(MAX_DEPTH, int(facts["kept"].max())) if row_facts else 0
    groups = {
        column: {
            str(value): score(group, depth)
            for value, group in facts.groupby(pd.Series(values, dtype=object))
        }
        for column, values in column_values.items()
    }
    return Metrics(overall=score(facts, depth), by=groups)


def score(facts: pd.DataFrame, depth: int) -> Scores:
    """The figures of some rows, with ranks up to `depth`; for the columns see `_facts`."""
    statuses = facts["status"].value_counts()
    labelled = facts[facts["correct"].notna()]
    scored = labelled[labelled["confidence"].notna()]
    confidences = facts["confidence"].dropna()
    ranked = facts[facts["relevant"] > 0]
    return Scores(
        rows=len(facts),
        ok=int(statuses.get("ok", 0)),
        degraded=int(statuses.get("degraded", 0)),
        error=int(statuses.get("error", 0)),
        accuracy=wilson(int(labelled["correct"].sum()), len(labelled)) if len(labelled) else None,
        mean_confidence=float(confidences.mean()) if len(confidences) else None,
        calibration_error=calibration_error(list(scored["confidence"]), list(scored["correct"]))
        if len(scored)
        else None,
        retrieval=retrieval(list(ranked["ranks"]), list(ranked["relevant"]), depth)
        if len(ranked) and depth
        else None,
    )


def wilson(correct: int, rows: int) -> Accuracy:
    """`correct` of `rows` with Wilson's score interval (Wilson 1927)."""
    share = correct / rows
    centre = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    spread = math.sqrt(share * (1 - share) / rows + (Z / (2 * rows)) ** 2) * Z / (1 + Z**2 / rows)
    # Rounding must not push a bound past the share itself, where that is 0 or 1.
    return Accuracy(rows, correct, share, min(share, centre - spread), max(share, centre + spread))


def calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Expected calibration error over 15 bins of equal width, (0, 1/15] the first (Guo 2017)."""
    values, hits = np.asarray(confidences, float), np.asarray(correct, float)
    bins = np.clip(np.ceil(values * BINS), 1, BINS)
    gaps = [abs((hits - values)[bins == number].sum()) for number in np.unique(bins)]
    return float(sum(gaps) / len(values))


def retrieval(ranks: Sequence[Sequence[int]], relevant: Sequence[int], depth: int) -> Retrieval:
    """Means over questions. For each: the ranks (from 1) of the relevant documents that were kept,
    in order, and how many documents are relevant."""
    top_ranks = [[rank for rank in question if rank <= depth] for question in ranks]
    first = np.array([question[0] if question else math.inf for question in top_ranks])
    gains = [ndcg(question, count, depth) for question, count in zip(top_ranks, relevant)]
    return Retrieval(
        rows=len(top_ranks),
        depth=depth,
        recall={k: float((first <= k).mean()) for k in sorted({1, depth})},
        mrr=float((1 / first).mean()),
        ndcg=float(np.mean(gains)),
    )


def ndcg(ranks: Sequence[int], relevant: int, depth: int) -> float:
    """Discounted gain of documents that are relevant or not, as a share of the best possible."""
    ideal_ranks = range(1, min(relevant, depth) + 1)
    return _discounted(ranks) / _discounted(ideal_ranks)


def _discounted(ranks: Sequence[int]) -> float:
    return math.fsum(1 / math.log2(rank + 1) for rank in ranks)


def _facts(row: Row) -> tuple[object, ...]:
    """What FACTS names: its status; whether it is correct, None without a valid label; its
    confidence; how many documents were kept, the ranks of the relevant among them, and how many
    are relevant."""
    evidence = _evidence(row)
    relevant = (row.question.relevant if row.question is not None else None) or frozenset()
    ranks = tuple(rank for rank, name in enumerate(evidence, start=1) if name in relevant)
    label = _label(row)
    index = _value(row, "prediction_index")
    correct = None if label is None else index == label
    status = row.cells.get("status")
    return status, correct, _value(row, "confidence"), len(evidence), ranks, len(relevant)


def _label(row: Row) -> int | None:
    """The right choice, known even where something else of the row is broken."""
    if row.question is not None:
        return row.question.label
    try:
        choices = parse_choices(row.cells.get("answer_choices"))
    except RowError:
        return None
    return find_label(row.cells.get("label"), choices)


def _value(row: Row, column: str) -> float | None:
    cell = row.cells.get(column)
    try:
        return None if is_empty(cell) else float(str(cell))
    except ValueError:
        raise _unreadable(row, column) from None


def _evidence(row: Row) -> list[str]:
    """The ids of the documents kept, best first."""
    cell: Any = row.cells.get("evidence")
    try:
        items = json.loads(cell) if isinstance(cell, str) else cell
        return [item["id"] for item in items]
    except (ValueError, TypeError, KeyError):
        raise _unreadable(row, "evidence") from None


def _unreadable(row: Row, column: str) -> InputError:
    return InputError(
        f"Line {row.line}, {column}: {row.cells.get(column)!r} is not what `predict` writes there; "
        "give the file as it wrote it."
    )
