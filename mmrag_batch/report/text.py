"""Metrics as a table for people."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

from mmrag_batch.report.compare import Comparison
from mmrag_batch.report.metrics import Metrics, Scores

ALWAYS = ("rows", "degraded", "error", "accuracy")
"""Columns that are shown even where nothing stands in them."""


class Table(NamedTuple):
    """Titles of columns, and for each group of rows its name and its cells."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def sum_up(ablations: Sequence[Comparison]) -> dict[str, dict[str, object]]:
    """What the table of ablations has, by their names."""
    return {
        one.name: {
            "rows": one.rows,
            "accuracy": one.here and asdict(one.here),
            "in_the_run": one.there and asdict(one.there),
            "became_right": len(one.became_right),
            "became_wrong": len(one.became_wrong),
            "p": one.p,
        }
        for one in ablations
    }


def as_text(metrics: Metrics) -> str:
    """One line for all rows and one for each group, each figure behind the rows it rests on; `-`
    where there are none. Then how the labels were read."""
    groups = {"all": metrics.overall}
    for column, scores in metrics.by.items():
        groups |= {f"{column}={value}": its for value, its in scores.items()}
    table = _align(tabulate(list(groups.items()), metrics.overall))
    said = [*_candidates(metrics), *metrics.labels]
    return "\n".join([*table, *([""] if said else []), *said])


def _candidates(metrics: Metrics) -> Iterator[str]:
    if (found := metrics.candidates) is not None:
        figures = [f"recall@{k} {value:.3f}" for k, value in found.recall.items()]
        figures += [f"success@{found.depth} {found.success[found.depth]:.3f}"]
        figures += [f"MRR@{found.depth} {found.mrr:.3f}", f"nDCG@{found.depth} {found.ndcg:.3f}"]
        yield f"candidates: {', '.join(figures)} ({found.rows:,} rows, ranked once more)."


def tell_ablations(comparisons: Sequence[Comparison]) -> str:
    """A line for each: how many of its rows are right, how many of the same rows are in the run,
    how many became right and wrong, and McNemar's p."""
    return "\n".join(_align(tabulate_ablations(comparisons)))


def tabulate_ablations(comparisons: Sequence[Comparison]) -> Table:
    """The same as cells."""
    titles = ("rows", "right", "95% interval", "in the run", "became right", "became wrong", "p")
    return Table(titles, tuple((one.name, tuple(_compared(one))) for one in comparisons))


def _compared(one: Comparison) -> Iterator[str]:
    here, there = one.here, one.there
    yield f"{one.rows:,}"
    yield _figure(here.value if here else None)
    yield f"{here.low:.3f}-{here.high:.3f}" if here else "-"
    yield _figure(there.value if there else None)
    yield from (f"{len(flipped):,}" for flipped in (one.became_right, one.became_wrong))
    yield f"{one.p:.2g}"


def _align(table: Table) -> list[str]:
    lines = [("", *table.titles), *((name, *cells) for name, cells in table.rows)]
    first, *rest = (max(map(len, column)) for column in zip(*lines))
    return [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, rest))])
        for name, *cells in lines
    ]


def tabulate(groups: Sequence[tuple[str, Scores]], overall: Scores) -> Table:
    """The figures of groups of rows; a column without any is left out."""
    depth = overall.retrieval.depth if overall.retrieval else 1
    lines = [(name, _cells(scores, depth)) for name, scores in groups]
    titles = [
        title
        for title in _cells(overall, depth)
        if title in ALWAYS or any(line[title] != "-" for _, line in lines)
    ]
    rows = tuple((name, tuple(line[title] for title in titles)) for name, line in lines)
    return Table(tuple(titles), rows)


def _cells(scores: Scores, depth: int) -> dict[str, str]:
    accuracy, written, retrieval = scores.accuracy, scores.free_form, scores.retrieval
    selective = scores.selective_accuracy
    cells = {
        "rows": f"{scores.rows:,}",
        "degraded": f"{scores.degraded:,}",
        "error": f"{scores.error:,}",
        "labelled": _count(accuracy.rows if accuracy else 0),
        "bad labels": _count(scores.unreadable),
        "accuracy": _figure(accuracy.value if accuracy else None),
        "95% interval": f"{accuracy.low:.3f}-{accuracy.high:.3f}" if accuracy else "-",
        "abstained": _count(scores.abstained),
        "selective accuracy": _figure(selective.value if selective and scores.abstained else None),
        "free-form": _count(scores.free_form_rows),
        "exact match": _figure(written.exact_match if written else None),
        "F1": _figure(written.f1 if written else None),
        "ANLS": _figure(written.anls if written else None),
        "relaxed": _figure(written.relaxed if written else None),
        "VQA": _figure(written.vqa if written else None),
        "confidence": _figure(scores.mean_confidence),
        "ECE": _figure(scores.calibration_error),
        "with relevant": _count(retrieval.rows if retrieval else 0),
    }
    for k in sorted({1, depth}):
        cells[f"recall@{k}"] = _figure(retrieval.recall[k] if retrieval else None)
        cells[f"success@{k}"] = _figure(retrieval.success[k] if retrieval else None)
    cells[f"MRR@{depth}"] = _figure(retrieval.mrr if retrieval else None)
    cells[f"nDCG@{depth}"] = _figure(retrieval.ndcg if retrieval else None)
    return cells


def _count(rows: int) -> str:
    return f"{rows:,}" if rows else "-"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
