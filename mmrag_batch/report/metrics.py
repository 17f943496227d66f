"""How good an output of `predict` is: accuracy, answers in free form, retrieval, calibration.

- Accuracy counts rows with choices and a label; one without an answer counts as wrong, whatever the
  reason. A label that names no choice of its row is left out and counted apart.
- Selective accuracy (El-Yaniv and Wiener 2010) counts those of them that were not withheld; the
  confidence of these is left out of calibration as well.
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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from mmrag_batch.report.calibration import calibration_error
from mmrag_batch.report.facts import Facts, read_facts
from mmrag_batch.report.free_form import FreeForm
from mmrag_batch.report.interval import Accuracy, wilson
from mmrag_batch.report.ranking import Retrieval, retrieval
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.truth import Reading

MAX_DEPTH = 5


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of some rows; None where no row has what a figure needs. `unreadable` labels are
    left out of accuracy; `free_form` are means over so many rows."""

    rows: int
    ok: int
    degraded: int
    error: int
    abstained: int
    unreadable: int
    accuracy: Accuracy | None
    selective_accuracy: Accuracy | None
    free_form_rows: int
    free_form: FreeForm | None
    mean_confidence: float | None
    calibration_error: float | None
    retrieval: Retrieval | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of a whole file, and of the rows of each value of each column asked for; and how
    its labels were read, in words. `candidates` are the figures of retrieval among more documents
    than were kept, where that was asked for."""

    overall: Scores
    by: dict[str, dict[str, Scores]]
    labels: list[str]
    candidates: Retrieval | None = None


def evaluate(
    path: Path,
    *,
    by: Sequence[str] = (),
    reading: Reading | None = None,
    names: Names = AS_THEY_ARE,
) -> Metrics:
    """Measure an output of `predict`, its labels read in one way alone if that is given; `names`
    are what it calls our columns. Raises what `read_facts` raises."""
    return measure(read_facts(path, by=by, reading=reading, names=names))


def measure(facts: Facts) -> Metrics:
    """The figures of all rows, and of each group of each column."""
    frame = facts.frame
    groups = {
        column: {
            str(value): score(group, depth_of(frame))
            for value, group in frame.groupby(pd.Series(values, dtype=object))
        }
        for column, values in facts.columns.items()
    }
    return Metrics(score(frame, depth_of(frame)), groups, facts.labels.describe())


def depth_of(facts: pd.DataFrame) -> int:
    """Up to which rank the relevant documents of a file are known."""
    return min(MAX_DEPTH, int(facts["kept"].max())) if len(facts) else 0


def by_evidence(facts: pd.DataFrame) -> dict[str, Scores]:
    """The figures of rows to which a relevant document was given, of those to which none was, and
    of those of which no relevant document is known; no rows, no figures."""
    known, found = facts["relevant"] > 0, facts["ranks"].map(len) > 0
    groups = {
        "a relevant document was kept": facts[known & found],
        "none of the relevant documents was kept": facts[known & ~found],
        "no relevant document is known": facts[~known],
    }
    depth = depth_of(facts)
    return {name: score(group, depth) for name, group in groups.items() if len(group)}


def score(facts: pd.DataFrame, depth: int) -> Scores:
    """The figures of some rows, with ranks up to `depth`; for the columns see `facts.py`."""
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
        abstained=int(statuses.get("abstained", 0)),
        unreadable=int((facts["truth"] == "unreadable").sum()),
        accuracy=_accuracy(labelled),
        selective_accuracy=_accuracy(labelled[labelled["status"] != "abstained"]),
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


def _accuracy(labelled: pd.DataFrame) -> Accuracy | None:
    return wilson(int(labelled["correct"].sum()), len(labelled)) if len(labelled) else None


def _mean(written: Sequence[FreeForm]) -> FreeForm:
    people = [one.vqa for one in written if one.vqa is not None]
    return FreeForm(
        exact_match=fmean(one.exact_match for one in written),
        f1=fmean(one.f1 for one in written),
        anls=fmean(one.anls for one in written),
        relaxed=fmean(one.relaxed for one in written),
        vqa=fmean(people) if people else None,
    )
