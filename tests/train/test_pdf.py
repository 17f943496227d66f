"""Pages of PDFs as training sees them: candidates, and what is known to help."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import read_spec
from mmrag_batch.records import Row
from mmrag_batch.retrieval.retriever import open_embedder
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train.data import embed_table
from mmrag_batch.train.examples import labelled_rows
from mmrag_batch.train.generator import with_evidence
from mmrag_batch.train.mllama import prompt_texts
from mmrag_batch.train.retriever import read_rows
from mmrag_batch.train.settings import GeneratorConfig, RetrieverConfig
from mmrag_batch.train.supervision import ByAnswer, by_relevant
from mmrag_batch.train.table_pairs import text_truths
from tests.images.parts import write_pdf


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three rows about one manual, of which a page, all of it or nothing is said to help."""
    (tmp_path / "manual.pdf").write_bytes(write_pdf(["It lifts 10 t.", "The key", "A rope"]))
    row = {
        "question_text": "What does it lift?",
        "answer_choices": ["5 t", "10 t"],
        "label": "10 t",
        "documents": [{"id": "m", "image": "manual.pdf"}, {"id": "t", "text": "A text"}],
    }
    truths: list[object] = [["m#page=2"], ["m"], None]
    table = tmp_path / "in.jsonl"
    table.write_text("".join(json.dumps(row | {"relevant": one}) + "\n" for one in truths))
    return table


def retriever_rows(table: Path) -> list[Row]:
    config = RetrieverConfig(
        encoders=DEMO_BUNDLE / "retriever",
        table=table,
        out=table.parent / "out",
        epochs=1,
        batch_size=1,
        learning_rate=0.1,
        hidden_size=8,
    )
    return list(read_rows(config, ImageLoader(table.parent)))


def test_towers_learn_which_pages_help(table: Path) -> None:
    embedder = open_embedder(
        DEMO_BUNDLE / "retriever",
        read_spec(DEMO_BUNDLE / "retriever"),
        ImageLoader(table.parent),
        device="cpu",
        threads=1,
    )
    embedded = embed_table(retriever_rows(table), embedder, by_relevant)
    assert embedded.counts.tolist() == [4, 4]
    third = pytest.approx(1 / 3)
    assert embedded.shares.tolist() == [0, 1, 0, 0, third, third, third, 0]
    assert (embedded.documents > 0).tolist()[:4] == [[True, True]] * 3 + [[False, True]]


def test_a_page_that_holds_the_answer_helps(table: Path) -> None:
    helps = ByAnswer(["A text"])(retriever_rows(table)[2])
    assert {name for name, share in helps.items() if share == 1} == {"m#page=1"}


@pytest.mark.parametrize("retriever", [None, DEMO_BUNDLE / "retriever"])
def test_a_generator_learns_from_pages(table: Path, retriever: Path | None) -> None:
    config = GeneratorConfig(
        base=DEMO_BUNDLE / "generator",
        table=table,
        out=table.parent / "out",
        steps=1,
        batch_size=1,
        learning_rate=0.1,
        top_k=4,
        max_images=1,
        scoring="letter",
    )
    images = ImageLoader(table.parent)
    rows = with_evidence(labelled_rows(table), images, replace(config, retriever=retriever))
    names = [[item.document.id for item in row.evidence] for row in rows]
    assert [sorted(some) for some in names] == [["m#page=1", "m#page=2", "m#page=3", "t"]] * 3
    if retriever is None:
        assert names[0][0] == "m#page=2"
        assert names[1][3] == "t"


def test_what_is_made_from_nothing_reads_pages(table: Path) -> None:
    assert all("The key" in text for text in prompt_texts(table))
    assert text_truths(table) == {"What does it lift?": ["The key", "It lifts 10 t.", "A rope"]}
