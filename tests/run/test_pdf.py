"""PDFs among the documents, from a table to its answers and its figures."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.engines.scripted import ScriptedEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import read_spec
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.report.metrics import evaluate
from mmrag_batch.retrieval.retriever import open_retriever
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.rows import read_rows
from tests.images.parts import write_pdf
from tests.run.parts import call

ASK: dict[str, Any] = {"question_text": "What does it lift?", "answer_choices": ["5 t", "10 t"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manual.pdf").write_bytes(write_pdf(["It lifts 10 t.", "The key", "A rope"]))
    (tmp_path / "torn.pdf").write_bytes(b"%PDF-1.7\n")
    return tmp_path


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    table = folder / "in.jsonl"
    table.write_text("".join(json.dumps(ASK | row) + "\n" for row in rows))
    return table


def predict(folder: Path, *options: object) -> list[dict[str, Any]]:
    done = call(
        "predict", folder / "in.jsonl", folder / "out.jsonl", "--engine", "scripted", *options
    )
    assert done.exit_code in (0, 3), done.stderr
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


class Recorder(ScriptedEngine):
    """A scripted engine that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        kept = list(requests)
        self.asked += kept
        return super().generate(kept)


def test_text_and_picture_of_a_page_reach_the_prompt(folder: Path) -> None:
    table = write(folder, {"documents": ["manual.pdf#page=1"]})
    images, engine = ImageLoader(folder), Recorder()
    renderer, directory = Renderer(DEMO_BUNDLE / "generator"), DEMO_BUNDLE / "retriever"
    spec = read_spec(directory)
    retriever = open_retriever(directory, spec, images, top_k=3, device="cpu", threads=1)
    answerer = Answerer(renderer, engine, images, PromptSpec(2, 1000, "letter"))
    (row,) = answerer(retriever(read_rows(table)))
    assert [item.document.text for item in row.evidence] == ["It lifts 10 t."]
    (request,) = engine.asked
    (picture,) = request.images
    assert picture is images.load("manual.pdf#page=1")
    assert "It lifts 10 t." in renderer.decode(request.token_ids)


def test_pages_are_evidence_and_a_broken_file_is_left_out(folder: Path) -> None:
    write(
        folder,
        {"documents": [{"id": "m", "image": "manual.pdf"}, "torn.pdf", "A text"]},
        {"documents": ["manual.pdf#page=2", "manual.pdf#page=9"]},
        {"question_image": "manual.pdf#page=2"},
        {"question_image": "manual.pdf"},
    )
    whole, one, shown, several = predict(folder, "--top-k", 9)
    ids = [item["id"] for item in whole["evidence"]]
    assert sorted(ids) == ["2", "m#page=1", "m#page=2", "m#page=3"]
    assert whole["status"] == "degraded"
    assert whole["error"].startswith("image_corrupt: document '1': 'torn.pdf': not a whole PDF")
    assert [item["id"] for item in one["evidence"]] == ["0"]
    assert "there is no page 9; it has pages 1 to 3" in one["error"]
    assert (shown["status"], shown["error"]) == ("ok", None)
    assert several["status"] == "error"
    assert "question_image: 'manual.pdf': a PDF of 3 pages; say which" in several["error"]


def test_a_changed_file_is_noticed(folder: Path) -> None:
    write(folder, {"documents": ["manual.pdf"]}, {"documents": ["manual.pdf#page=2"]}, {})
    predict(folder)
    assert "asked 0" in summary(folder)
    (folder / "manual.pdf").write_bytes(write_pdf(["It lifts 5 t.", "The key"]))
    assert "asked 2" in summary(folder)


def summary(folder: Path) -> str:
    """How many rows a run with --verify-inputs asks."""
    before = json.loads((folder / "out.jsonl.manifest.json").read_text())
    predict(folder, "--verify-inputs")
    after = json.loads((folder / "out.jsonl.manifest.json").read_text())
    return f"asked {after['asked'] if after != before else 0}"


def test_validate_looks_at_each_page(folder: Path) -> None:
    table = write(
        folder,
        {"documents": [{"id": "m", "image": "manual.pdf"}], "relevant": ["m", "m#page=3"]},
        {"documents": [{"id": "m", "image": "manual.pdf"}], "relevant": ["m#page=4"]},
        {"question_image": "manual.pdf"},
        {"documents": ["torn.pdf"]},
    )
    said = call("validate", table).stdout
    assert "line 1" not in said
    assert "'m#page=4' is no page that can be read" in said
    assert "a PDF of 3 pages; say which of them" in said
    assert "document '0': 'torn.pdf': not a whole PDF" in said


def test_a_page_that_is_found_counts_for_its_document(folder: Path) -> None:
    documents = [{"id": "m", "image": "manual.pdf"}, {"id": "t", "text": "A text"}]
    rows = [
        ({"relevant": ["m"]}, ["m#page=2", "m#page=1"]),
        ({"relevant": ["m#page=1"]}, ["m#page=2", "m#page=1"]),
        ({"relevant": ["m", "t"]}, ["m#page=2", "m#page=1"]),
        ({"relevant": ["m#page=3"]}, ["m#page=2", "t"]),
    ]
    answered = {"prediction": "5 t", "prediction_index": 0, "confidence": 0.5, "status": "ok"}
    table = write(
        folder,
        *(
            answered
            | {"documents": documents, "evidence": [{"id": one, "score": 1.0} for one in ids]}
            | truth
            for truth, ids in rows
        ),
    )
    found = evaluate(table).overall.retrieval
    assert found is not None
    assert found.recall[2] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert found.mrr == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found.ndcg <= 1
