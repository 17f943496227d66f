"""Outputs of `predict` as it writes them, made without it."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmrag_batch.table.output import OUTPUT_COLUMNS

COLUMNS = (
    *("id", "kind", "question_text", "question_image", "answer_choices", "documents"),
    *("label", "relevant"),
)
CHOICES = ("red", "green", "blue")


def make_row(number: int, **cells: Any) -> dict[str, Any]:
    """A row that is right but for every fourth, whose relevant document is kept but in each third,
    and whose confidence falls with its number."""
    right = number % 4 != 3
    confidence = round(0.99 - (number % 50) / 100, 4)
    rest = (1 - confidence) / 2
    values: dict[str, Any] = {
        "id": f"q{number}",
        "kind": ("photo", "chart")[number % 2],
        "question_text": f"Which colour has thing {number}?",
        "question_image": "red.png" if number % 2 else None,
        "answer_choices": list(CHOICES),
        "documents": [f"Thing {number} is red.", "green.png", {"id": "faq", "text": "Ask."}],
        "label": "red",
        "relevant": [0],
        "prediction": "red" if right else "green",
        "prediction_index": 0 if right else 1,
        "confidence": confidence,
        "confidence_per_token": None,
        "choice_probabilities": [confidence, rest, rest] if right else [rest, confidence, rest],
        "evidence": [{"id": "1", "score": 2.5}, {"id": "faq", "score": 0.5}]
        if number % 3 == 2
        else [{"id": "0", "score": 9.25}, {"id": "1", "score": 2.5}],
        "status": "ok",
        "error": None,
    }
    return values | cells


def failed(number: int) -> dict[str, Any]:
    """A row without an answer."""
    return make_row(number) | {
        **dict.fromkeys(OUTPUT_COLUMNS),
        "evidence": [],
        "status": "error",
        "error": f"image_missing: line {number + 2}: 'gone.png': no such file",
    }


def write_output(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as a CSV, with two pictures beside it."""
    for name in ("red", "green"):
        Image.new("RGB", (40, 30), name).save(path.with_name(f"{name}.png"))
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, [*COLUMNS, *OUTPUT_COLUMNS])
        table.writeheader()
        for row in rows:
            table.writerow(
                {
                    name: json.dumps(cell) if isinstance(cell, list) else cell
                    for name, cell in row.items()
                }
            )
    return path


def make_rows() -> list[dict[str, Any]]:
    """Some rows of each sort."""
    rows = [make_row(number) for number in range(24)]
    rows[5] = failed(5)
    rows[8] = make_row(8, label=None)
    rows[9] = make_row(9, relevant=None)
    note = "image_missing: document '1': 'lost.png': no such file; page_missing: document 'b': no"
    rows[10] = make_row(10, status="degraded", error=note)
    return rows
