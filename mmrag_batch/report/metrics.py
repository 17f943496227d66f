"""How good an output of `predict` is: accuracy, answers in free form, retrieval, calibration.

- Accuracy counts rows with choices and a label; one without an answer counts as wrong, whatever the
  reason. A label that names no choice of its row is left out and counted apart.
- Answers in free form count rows with a label and without choices; no answer scores 0.
- Retrieval counts rows with a relevant document. The output holds only the evidence that the
  generator was given, so ranks are known up to the longest evidence of the file, at most 5: every
  figure is at that depth and named so (`recall@3`). A relevant document that was not kept has no
  rank and scores 0; a PDF that is relevant is found with the first of its pages. By the
  definitions of trec_eval: recall@k is the share of the relevant documents among the first k,
  success@k (the hit rate) whether there is any.
- The expected calibration error takes rows that have a confidence and a valid label; an answer in
  free form counts as right where it is an exact match.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import pandas as pd

from mmrag_batch.errors import ConfigError, InputError, RowError
from mmrag_batch.records import Row
from mmrag_batch.report.free_form import FreeForm, score_answer
from mmrag_batch.report.ranking import Retrieval, retrieval
from mmrag_batch.table.cells import parse_choices
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.rows import read_header
from mmrag_batch.table.truth import (
    Labels,
    Reading,
    find_ranks,
    is_labelled,
    read_answers,
    read_labels,
)
from mmrag_batch.table.values import is_empty

MAX_DEPTH = 5
BINS = 15
FACTS = (
    *("status", "truth", "correct", "free_form", "right", "confidence"),
    *("kept", "ranks", "relevant"),
)
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
class Scores:
    """The figures of some rows; None where no row has what a figure needs. `unreadable` labels are
    left out of accuracy; `free_form` are means over so many rows."""

    rows: int
    ok: int
    degraded: int
    error: int
    unreadable: int
    accuracy: Accuracy | None
    free_form_rows: int
    free_form: FreeForm | None
    mean_confidence: float | None
    calibration_error: float | None
    retrieval: Retrieval | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of a whole file, and of the rows of each value of each column asked for; and how
    its labels were read, in words."""

    overall: Scores
    by: dict[str, dict[str, Scores]]
    labels: list[str]


def evaluate(
    path: Path,
    *,
    by: Sequence[str] = (),
    reading: Reading | None = None,
    names: Names = AS_THEY_ARE,
) -> Metrics:
    """Measure an output of `predict`, its labels read in one way alone if that is given; `names`
    are what it calls our columns.

    Raises InputError for a table that is no such output, ConfigError for an unknown column in `by`,
    and what `read_header` raises.
    """
    columns = read_header(path, names)
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
    labels = read_labels(path, reading, names=names)
    for row in labels.rows():  # texts and documents are not kept: a file may be large
        row_facts.append(_facts(row, labels))
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
    return Metrics(overall=score(facts, depth), by=groups, labels=labels.describe())


def score(facts: pd.DataFrame, depth: int) -> Scores:
    """The figures of some rows, with ranks up to `depth`; for the columns see `_facts`."""
    statuses = facts["status"].value_counts()
    labelled = facts[facts["correct"].notna()]
    scored = facts[facts["right"].notna() & facts["confidence"].notna()]
    written = list(facts["free_form"].dropna())
    confidences = facts["confidence"].dropna()
    ranked = facts[facts["relevant"] > 0]
    return Scores(
        rows=len(facts),
        ok=int(statuses.get("ok", 0)),
        degraded=int(statuses.get("degraded", 0)),
        error=int(statuses.get("error", 0)),
        unreadable=int((facts["truth"] == "unreadable").sum()),
        accuracy=wilson(int(labelled["correct"].sum()), len(labelled)) if len(labelled) else None,
        free_form_rows=len(written),
        free_form=_mean(written) if written else None,
        mean_confidence=float(confidences.mean()) if len(confidences) else None,
        calibration_error=calibration_error(list(scored["confidence"]), list(scored["right"]))
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


def _mean(written: Sequence[FreeForm]) -> FreeForm:
    people = [one.vqa for one in written if one.vqa is not None]
    return FreeForm(
        exact_match=fmean(one.exact_match for one in written),
        f1=fmean(one.f1 for one in written),
        anls=fmean(one.anls for one in written),
        relaxed=fmean(one.relaxed for one in written),
        vqa=fmean(people) if people else None,
    )


def _facts(row: Row, labels: Labels) -> tuple[object, ...]:
    """What FACTS names: its status; what its label is: none, unreadable, a choice or free_form;
    whether it is correct, None without a valid label, and how near it is in free form; whether
    either says that it is right; its confidence; how many documents were kept, the ranks of the
    relevant among them, and how many are relevant."""
    evidence = _evidence(row)
    relevant, ranks = frozenset[str](), tuple[int, ...]()
    if row.question is not None and row.question.relevant:
        relevant = row.question.relevant
        ranks = find_ranks(evidence, relevant, row.question.documents)
    truth, correct, written = _truth(row, labels)
    right = correct if written is None else written.exact_match == 1
    status, confidence = row.cells.get("status"), _value(row, "confidence")
    known = (status, truth, correct, written, right, confidence)
    return *known, len(evidence), ranks, len(relevant)


def _truth(row: Row, labels: Labels) -> tuple[str, bool | None, FreeForm | None]:
    """What the label is, whether the row is correct, and how near in free form; known even where
    something else of the row is broken."""
    cell = row.cells.get("label")
    try:
        choices = parse_choices(row.cells.get("answer_choices"))
    except RowError:  # so that no answer could be given
        return ("none", None, None) if is_empty(cell) else ("choice", False, None)
    if not choices and (written := _free_form(row)) is not None:
        return "free_form", None, written
    if not choices or not is_labelled(cell, choices):
        return "none", None, None
    label = labels.find(cell, choices)
    if label is None:
        return "unreadable", None, None
    return "choice", _value(row, "prediction_index") == label, None


def _free_form(row: Row) -> FreeForm | None:
    """The figures of an answer in free form; None without a right one."""
    people = read_answers(row.cells.get("answers"))
    references = read_answers(row.cells.get("label")) or people
    if not references:
        return None
    return score_answer(str(row.cells.get("prediction") or ""), references, people)


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
