"""Metrics as a table for people or as JSON for machines."""

import json
from dataclasses import asdict

from mmrag_batch.report.metrics import Metrics, Scores

ALWAYS = ("", "rows", "degraded", "error", "accuracy")
"""Columns that are shown even where nothing stands in them."""


def as_json(metrics: Metrics) -> str:
    """Every figure, under the names of the dataclasses in `metrics.py`."""
    return json.dumps(asdict(metrics), indent=2, ensure_ascii=False)


def as_text(metrics: Metrics) -> str:
    """One line for all rows and one for each group, each figure behind the rows it rests on; `-`
    where there are none. Then how the labels were read."""
    group_scores = {"all": metrics.overall}
    for column, groups in metrics.by.items():
        group_scores |= {f"{column}={value}": scores for value, scores in groups.items()}
    depth = metrics.overall.retrieval.depth if metrics.overall.retrieval else 1
    lines = [{"": name} | _cells(scores, depth) for name, scores in group_scores.items()]
    titles = [
        title for title in lines[0] if title in ALWAYS or any(line[title] != "-" for line in lines)
    ]
    header = {title: title for title in titles}
    widths = {title: max(len(line[title]) for line in [header, *lines]) for title in titles}
    table = [
        "  ".join(
            line[title].rjust(widths[title]) if title else line[title].ljust(widths[title])
            for title in titles
        )
        for line in [header, *lines]
    ]
    return "\n".join([*table, *([""] if metrics.labels else []), *metrics.labels])


def _cells(scores: Scores, depth: int) -> dict[str, str]:
    accuracy, written, retrieval = scores.accuracy, scores.free_form, scores.retrieval
    cells = {
        "rows": f"{scores.rows:,}",
        "degraded": f"{scores.degraded:,}",
        "error": f"{scores.error:,}",
        "labelled": _count(accuracy.rows if accuracy else 0),
        "bad labels": _count(scores.unreadable),
        "accuracy": _figure(accuracy.value if accuracy else None),
        "95% interval": f"{accuracy.low:.3f}-{accuracy.high:.3f}" if accuracy else "-",
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
