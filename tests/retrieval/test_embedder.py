import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import RowError
from mmrag_batch.records import Document, Problem, Question, Row
from mmrag_batch.retrieval.cache import EmbeddingCache
from mmrag_batch.retrieval.embedder import Embedder
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.stages import Page

PICTURES = {name: Image.new("RGB", (40, 40), name) for name in ("red", "green", "blue")}


class Pictures:
    """Images named by colour. `again/red` holds the bytes of `red`; `torn*` cannot be decoded, and
    any other source is not there."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()

    def digest(self, source: str) -> str:
        name = source.removeprefix("again/")
        if name not in PICTURES and not name.startswith("torn"):
            raise RowError("image_missing", f"{source!r}: no such file")
        return hashlib.sha256(name.encode()).hexdigest()

    def pages(self, source: str) -> tuple[Page, ...]:
        return ()

    def load(self, source: str) -> Image.Image:
        self.loads[source] += 1
        name = source.removeprefix("again/")
        if name not in PICTURES:
            raise RowError("image_corrupt", f"{source!r}: truncated")
        return PICTURES[name]


class CountingEncoder(Encoder):
    """The real encoder, which also notes what it was given."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, read_retriever_spec(directory), device="cpu", threads=1)
        self.texts: Counter[str] = Counter()

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        self.texts.update(texts)
        return super().encode_texts(texts)


@pytest.fixture(scope="module")
def encoder(tiny_retriever_dir: Path) -> CountingEncoder:
    return CountingEncoder(tiny_retriever_dir)


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def embedder(encoder: CountingEncoder, pictures: Pictures) -> Embedder:
    encoder.texts.clear()
    return Embedder(encoder, EmbeddingCache(100, encoder.embedding_size), pictures)


def row(
    text: str, image: str | None = None, documents: Sequence[tuple[str | None, str | None]] = ()
) -> Row:
    question = Question(
        text=text,
        image=image,
        choices=(),
        documents=tuple(Document(f"d{n}", *content) for n, content in enumerate(documents)),
        label=None,
        relevant=None,
    )
    return Row(number=0, line=2, id="0", cells={}, question=question)


def test_each_side_has_the_embeddings_of_what_is_present(
    embedder: Embedder, encoder: CountingEncoder
) -> None:
    asked = row("cost?", "red", [("a cube", None), (None, "green"), ("a ball", "blue")])
    (embedded,) = embedder.embed([asked])
    assert embedded is not None
    assert [document.id for document in embedded.documents] == ["d0", "d1", "d2"]
    sides = [embedded.question, *embedded.candidates]
    assert [side.present.tolist() for side in sides] == [[1, 1], [0, 1], [1, 0], [1, 1]]
    images = encoder.encode_images([PICTURES[name] for name in ("red", "green", "blue")])
    texts = encoder.encode_texts(["cost?", "a cube", "a ball"])
    nothing = np.zeros_like(images[0])
    for side, image, text in zip(
        sides, [images[0], nothing, *images[1:]], [*texts[:2], nothing, texts[2]]
    ):
        np.testing.assert_allclose(side.modalities, [image, text], atol=1e-6)


def test_each_content_is_encoded_once_in_a_window(
    embedder: Embedder, encoder: CountingEncoder, pictures: Pictures
) -> None:
    rows = [row("cost?", "red", [("cost?", None), ("a cube", "red")]) for _ in range(5)]
    assert None not in embedder.embed(rows)
    assert encoder.texts == {"cost?": 1, "a cube": 1}
    assert pictures.loads == {"red": 1}


def test_what_is_known_is_neither_encoded_nor_decoded_again(
    embedder: Embedder, encoder: CountingEncoder, pictures: Pictures
) -> None:
    (first,) = embedder.embed([row("cost?", "red", [("cost?", None)])])
    (second,) = embedder.embed([row("cost?", "red", [("cost?", None)])])
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.question.modalities, second.question.modalities)
    assert encoder.texts == {"cost?": 1}
    assert pictures.loads == {"red": 1}


def test_a_picture_under_two_names_is_decoded_once(embedder: Embedder, pictures: Pictures) -> None:
    (embedded,) = embedder.embed([row("cost?", "red", [(None, "again/red")])])
    assert embedded is not None
    np.testing.assert_array_equal(
        embedded.candidates[0].modalities[0], embedded.question.modalities[0]
    )
    assert pictures.loads.total() == 1


def test_a_window_may_hold_more_than_the_cache(encoder: CountingEncoder) -> None:
    cache = EmbeddingCache(2, encoder.embedding_size)
    rows = [row(f"text {number}", "red", [(None, "green")]) for number in range(9)]
    assert None not in Embedder(encoder, cache, Pictures()).embed(rows)
    assert len(cache) == 2


@pytest.mark.parametrize(("source", "code"), [("gone", "image_missing"), ("torn", "image_corrupt")])
def test_a_broken_document_is_left_out_and_named(
    embedder: Embedder, source: str, code: str
) -> None:
    degraded = row("cost?", None, [("a cube", None), ("its text", source), (None, "red")])
    (embedded,) = embedder.embed([degraded])
    assert embedded is not None
    assert [document.id for document in embedded.documents] == ["d0", "d2"]
    assert len(embedded.candidates) == 2
    (problem,) = degraded.problems
    assert problem.code == code
    assert "'d1'" in problem.message
    assert degraded.error is None


@pytest.mark.parametrize(("source", "code"), [("gone", "image_missing"), ("torn", "image_corrupt")])
def test_a_broken_question_image_is_the_error_of_its_row(
    embedder: Embedder, source: str, code: str
) -> None:
    rows = [row("cost?", image, [("a cube", None)]) for image in (source, "red")]
    embedded = embedder.embed(rows)
    assert embedded[0] is None
    assert embedded[1] is not None
    assert rows[0].error is not None
    assert rows[0].error.code == code
    assert "question_image" in rows[0].error.message
    assert rows[1].error is None


def test_a_row_without_documents_is_not_encoded_and_its_image_only_looked_for(
    embedder: Embedder, encoder: CountingEncoder, pictures: Pictures
) -> None:
    rows = [row("cost?", "red"), row("cost?", "gone")]
    assert embedder.embed(rows) == [None, None]
    assert (encoder.texts, pictures.loads) == ({}, {})
    assert rows[0].error is None
    assert rows[1].error is not None
    assert rows[1].error.code == "image_missing"


def test_the_digests_of_the_image_files_of_a_row_go_with_it(embedder: Embedder) -> None:
    asked = row("cost?", "red", [(None, "gone"), (None, "data:image/png;base64,AAAA")])
    embedder.embed([asked])
    assert asked.images.keys() == {"red", "gone"}
    assert asked.images["red"]
    assert asked.images["gone"] is None


def test_a_broken_image_is_reported_wherever_it_is_used(
    embedder: Embedder, pictures: Pictures
) -> None:
    rows = [row("cost?", None, [(None, "torn"), (None, "again/torn")]), row("why?", "torn")]
    embedder.embed(rows)
    assert [problem.code for problem in rows[0].problems] == ["image_corrupt"] * 2
    assert rows[1].error is not None
    assert pictures.loads.total() == 1


def test_a_row_with_an_error_is_left_as_it_is(
    embedder: Embedder, encoder: CountingEncoder, pictures: Pictures
) -> None:
    broken = row("cost?", "red", [("a cube", "gone")])
    broken.error = Problem("bad_documents", "not JSON")
    assert embedder.embed([broken]) == [None]
    assert broken.error == Problem("bad_documents", "not JSON")
    assert broken.problems == []
    assert not encoder.texts
    assert not pictures.loads
