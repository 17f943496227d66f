"""Documents in the order in which a row has them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.images.parts import write_pdf
from tests.run.parts import call

ASK: dict[str, Any] = {"question_text": "What does it lift?", "answer_choices": ["5 t", "10 t"]}


def predict(folder: Path, documents: list[Any], *options: object) -> dict[str, Any]:
    table = folder / "in.jsonl"
    table.write_text(json.dumps(ASK | {"documents": documents}) + "\n")
    words = ("predict", table, folder / "out.jsonl", "--engine", "scripted", "--fresh")
    done = call(*words, "--candidates", "given", *options)
    assert done.exit_code == 0, done.stderr
    row: dict[str, Any] = json.loads((folder / "out.jsonl").read_text())
    return row


def test_the_first_are_kept_in_their_order_and_nobody_scores_them(tmp_path: Path) -> None:
    texts = ["A rope.", "It lifts 10 t.", "The key.", "A hook."]
    row = predict(tmp_path, texts, "--top-k", 3)
    assert row["evidence"] == [{"id": str(number), "score": 0.0} for number in range(3)]
    assert predict(tmp_path, texts, "--top-k", 0)["evidence"] == []


def test_one_that_cannot_be_read_makes_room_and_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    row = predict(tmp_path, ["lost.png", "red.png", "A rope.", "gone.png"], "--top-k", 2)
    assert [item["id"] for item in row["evidence"]] == ["1", "2"]
    assert row["status"] == "degraded"
    assert "lost.png" in row["error"]
    assert "gone.png" not in row["error"]


def test_a_pdf_is_its_pages_in_their_order(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (tmp_path / "manual.pdf").write_bytes(write_pdf(["It lifts 10 t.", "The key", "A rope"]))
    row = predict(tmp_path, ["A hook.", "manual.pdf"], "--top-k", 3)
    assert [item["id"] for item in row["evidence"]] == ["0", "1#page=1", "1#page=2"]
