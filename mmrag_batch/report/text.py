"""Metrics as a table for people or as JSON for machines."""

import json
from dataclasses import asdict

from mmrag_batch.report.metrics import Metrics, Scores


def as_json(metrics: Metrics) -> str:
    """Every figure, under the names of the dataclasses in `metrics.py`."""
    return json.dumps(asdict(metrics), indent=2, ensure_ascii=False)


def as_text(metrics: Metrics) -> str:
    """One line for all rows and one for each group; `-` where a figure has no rows."""
    group_scores = {"all": metrics.overall}
    for column, groups in metrics.by.items():
        group_scores |= {f"{column}={value}": scores for value, scores in groups.items()}
    depth = metrics.overall.retrieval.depth if metrics.overall.retrieval else 1
    lines = [{"": name} | _cells(scores, depth) for name, scores in group_scores.items()]
    header = {title: title for title in lines[0]}
    widths = {title: max(len(line[title]) for line in [header, *lines]) for title in header}
    return "\n".join(
        "  ".join(
            text.rjust(widths[title]) if title else text.ljust(widths[title])
            for title, text in line.items()
        )
        for line in [header, *lines]
    )


def _cells(scores: Scores, depth: int) -> dict[str, str]:
    accuracy, retrieval = scores.accuracy, scores.retrieval
    cells = {
        "rows": f"{scores.rows:,}",
        "degraded": f"{scores.degraded:,}",
        "error": f"{scores.error:,}",
        "accuracy": _figure(accuracy.value if accuracy else None),
        "95% interval": f"{accuracy.low:.3f}-{accuracy.high:.3f}" if accuracy else "-",
        "confidence": _figure(scores.mean_confidence),
        "ECE": _figure(scores.calibration_error),
    }
    for k in sorted({1, depth}):
        cells[f"recall@{k}"] = _figure(retrieval.recall[k] if retrieval else None)
    cells[f"MRR@{depth}"] = _figure(retrieval.mrr if retrieval else None)
    cells[f"nDCG@{depth}"] = _figure(retrieval.ndcg if retrieval else None)
    return cells


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
