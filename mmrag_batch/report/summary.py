"""The figures of a page, from the facts of its rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import pandas as pd

from mmrag_batch.report.calibration import coverage, find_threshold, reliability
from mmrag_batch.report.cards import LONGEST_QUESTION, LONGEST_TEXT, cut
from mmrag_batch.report.compare import Comparison
from mmrag_batch.report.facts import LONGEST_VALUE, MOST_GROUPS, Facts
from mmrag_batch.report.interval import wilson
from mmrag_batch.report.metrics import Scores, by_evidence, measure
from mmrag_batch.report.page import Codes, Overview, Threshold
from mmrag_batch.report.plots import Plot, draw_coverage, draw_reliability
from mmrag_batch.report.text import tabulate, tabulate_ablations

WISHED = (0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
"""Accuracies for which a threshold is shown, where the run is not as accurate without one."""
MOST_LINES, MOST_CODES = 100, 30
"""Groups of a column, and kinds of problems, that are shown."""


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
    ablations: Sequence[Comparison],
) -> Overview:
    """All of a page but its rows; `numbers` are those of the rows in the run's table, where the
    output has not all of it."""
    frame = facts.frame
    metrics = measure(facts)
    overall = metrics.overall
    groups = [("", [("all rows", overall)])]
    groups += [(column, _largest(some)) for column, some in metrics.by.items()]
    if overall.retrieval:
        groups.append(("whether the evidence was found", list(by_evidence(frame).items())))
    titles, lines = tabulate([one for _, some in groups for one in some], overall)
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
    said += [
        f"{column} has {len(some):,} values: the {MOST_LINES} with most rows are shown."
        for column, some in metrics.by.items()
        if len(some) > MOST_LINES
    ]
    return Overview(
        title=title,
        notes=said,
        overall=overall,
        labels=[cut(line, LONGEST_QUESTION) for line in metrics.labels],
        titles=titles,
        groups=[(column, list(islice(left, len(some)))) for column, some in groups],
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
            name: sorted({cut(value, LONGEST_VALUE) for value in set(values)})[:MOST_GROUPS]
            for name, values in facts.columns.items()
            if name != "status"  # which rows can be filtered by in any case
        },
        facts=run,
        command=command,
        explain=explain,
        comparison=comparison,
        ablations=tabulate_ablations(ablations),
    )


def _largest(groups: Mapping[str, Scores]) -> list[tuple[str, Scores]]:
    """Groups by their names or, of very many, the largest."""
    lines = [(cut(name, LONGEST_VALUE), scores) for name, scores in groups.items()]
    by_rows = sorted(lines, key=lambda line: -line[1].rows)
    return lines if len(lines) <= MOST_LINES else by_rows[:MOST_LINES]


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
    for code, some in sorted(rows.items(), key=lambda item: -len(item[1]))[:MOST_CODES]:
        first = some[0] if numbers is None else numbers[some[0]]
        yield Codes(code, len(some), first, cut(messages[code], LONGEST_TEXT))
