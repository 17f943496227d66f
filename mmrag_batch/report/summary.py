"""The figures of a page, from the facts of its rows."""

from collections.abc import Iterator, Sequence
from itertools import islice

import pandas as pd

from mmrag_batch.report.calibration import coverage, find_threshold, reliability
from mmrag_batch.report.compare import Comparison
from mmrag_batch.report.facts import MOST_GROUPS, Facts
from mmrag_batch.report.interval import wilson
from mmrag_batch.report.metrics import by_evidence, measure
from mmrag_batch.report.page import Codes, Overview, Threshold
from mmrag_batch.report.plots import Plot, draw_coverage, draw_reliability
from mmrag_batch.report.text import tabulate

WISHED = (0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
"""Accuracies for which a threshold is shown, where the run is not as accurate without one."""


def summarize(
    facts: Facts,
    *,
    title: str,
    notes: Sequence[str],
    numbers: Sequence[int] | None,
    run: Sequence[tuple[str, str]],
    command: str,
    explain: str,
    comparison: Comparison | None,
) -> Overview:
    """All of a page but its rows; `numbers` are those of the rows in the run's table, where the
    output has not all of it."""
    frame = facts.frame
    metrics = measure(facts)
    overall = metrics.overall
    groups = {"": {"all rows": overall}, **metrics.by}
    if overall.retrieval:
        groups["whether the evidence was found"] = by_evidence(frame)
    titles, lines = tabulate([one for some in groups.values() for one in some.items()], overall)
    left = iter(lines)
    labelled = frame[frame["right"].notna()]
    scored = labelled[labelled["confidence"].notna()]
    confidences, right = list(scored["confidence"]), list(scored["right"])
    bins = reliability(confidences, right) if confidences else []
    points = coverage(confidences, right, len(labelled)) if confidences else []
    plots: dict[str, Plot] = {}
    if points:
        plots = {"reliability": draw_reliability(bins), "coverage": draw_coverage(points)}
    thresholds = []
    for wished in WISHED if points else ():
        if wished > points[-1].accuracy:
            point = find_threshold(points, wished)
            share = None if point is None else wilson(point.correct, point.rows)
            thresholds.append(Threshold(wished, point, share))
    said = [*notes, *_tell_truth(frame)]
    return Overview(
        title=title,
        notes=said,
        overall=overall,
        labels=metrics.labels,
        titles=titles,
        groups=[(column, list(islice(left, len(some)))) for column, some in groups.items()],
        plots=plots,
        bins=[
            (
                f"{one.low:.3f} to {one.high:.3f}",
                one.rows,
                f"{one.confidence:.3f}",
                f"{one.correct:,} ({one.correct / one.rows:.3f})",
            )
            for one in bins
        ],
        scored=len(scored),
        labelled=len(labelled),
        thresholds=thresholds,
        codes=list(_count_codes(frame, facts.messages, numbers)),
        filters={
            name: sorted(set(values))[:MOST_GROUPS]
            for name, values in facts.columns.items()
            if name != "status"  # which rows can be filtered by in any case
        },
        facts=run,
        command=command,
        explain=explain,
        comparison=comparison,
    )


def _tell_truth(frame: pd.DataFrame) -> Iterator[str]:
    """What a page lacks, and why."""
    if not len(frame):
        yield "There are no rows yet."
    elif not frame["right"].notna().any():
        yield (
            "No row has a label that can be read, so nothing says what is right: fill the column "
            "`label` (and `answer_choices`) for accuracy and calibration."
        )
    elif not (frame["confidence"].notna() & frame["right"].notna()).any():
        yield "No row with a label has a confidence: the engine told none."
    if len(frame) and not (frame["relevant"] > 0).any():
        yield (
            "No row names a relevant document, so nothing says whether the right evidence was "
            "found: fill the column `relevant` for retrieval."
        )


def _count_codes(
    frame: pd.DataFrame, messages: dict[str, str], numbers: Sequence[int] | None
) -> Iterator[Codes]:
    rows: dict[str, list[int]] = {}
    for number, codes in enumerate(frame["codes"]):
        for code in set(codes):
            rows.setdefault(code, []).append(number)
    for code, some in sorted(rows.items(), key=lambda item: -len(item[1])):
        first = some[0] if numbers is None else numbers[some[0]]
        yield Codes(code, len(some), first, messages[code])
