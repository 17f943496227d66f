"""Documents that are PDFs become their pages, and what is relevant names them."""

from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Document, Question
from tests.images.parts import write_pdf


@pytest.fixture
def images(tmp_path: Path) -> ImageLoader:
    (tmp_path / "manual.pdf").write_bytes(write_pdf(["First", "Second", ""]))
    (tmp_path / "torn.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "unnamed").write_bytes(write_pdf(["Alone"]))
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    return ImageLoader(tmp_path)


def question(*documents: Document, relevant: frozenset[str] | None = None) -> Question:
    return Question("Why?", None, (), documents, None, relevant)


def test_each_page_of_a_file_is_a_document(images: ImageLoader) -> None:
    pages = with_pages(question(Document("m", None, "manual.pdf")), images).documents
    assert pages == (
        Document("m#page=1", "First", "manual.pdf#page=1"),
        Document("m#page=2", "Second", "manual.pdf#page=2"),
        Document("m#page=3", None, "manual.pdf#page=3"),
    )
    (alone,) = with_pages(question(Document("0", None, "unnamed")), images).documents
    assert alone == Document("0#page=1", "Alone", "unnamed#page=1")


def test_one_page_keeps_the_id_of_its_document(images: ImageLoader) -> None:
    (page,) = with_pages(question(Document("m", None, "manual.pdf#page=2")), images).documents
    assert page == Document("m", "Second", "manual.pdf#page=2")


def test_a_text_stands_before_those_of_all_pages_and_instead_of_that_of_one(
    images: ImageLoader,
) -> None:
    asked = question(
        Document("m", "The LX-10", "manual.pdf"), Document("n", "Mine", "manual.pdf#page=2")
    )
    texts = [document.text for document in with_pages(asked, images).documents]
    assert texts == ["The LX-10\nFirst", "The LX-10\nSecond", "The LX-10", "Mine"]


def test_pages_of_pages_are_the_same(images: ImageLoader) -> None:
    asked = question(Document("m", "The LX-10", "manual.pdf"), Document("t", "A text", None))
    once = with_pages(asked, images)
    assert with_pages(once, images) is once


def test_rows_that_share_a_file_share_its_pages(images: ImageLoader) -> None:
    first, second = (
        with_pages(question(Document("m", None, "manual.pdf")), images) for _ in range(2)
    )
    assert all(a is b for a, b in zip(first.documents, second.documents, strict=True))


def test_what_is_no_pdf_or_cannot_be_read_stays(images: ImageLoader) -> None:
    asked = question(
        Document("0", None, "a.png"),
        Document("1", None, "torn.pdf"),
        Document("2", None, "absent.pdf"),
        Document("3", "A text", None),
    )
    assert with_pages(asked, images) is asked


def test_a_document_that_is_called_as_a_page_stands_for_it(images: ImageLoader) -> None:
    mine = Document("m#page=2", "Mine", None)
    for documents in (
        (Document("m", None, "manual.pdf"), mine),
        (mine, Document("m", None, "manual.pdf")),
    ):
        pages = with_pages(question(*documents), images).documents
        assert sorted(page.id for page in pages) == ["m#page=1", "m#page=2", "m#page=3"]
        assert mine in pages


@pytest.mark.parametrize(
    ("relevant", "pages"),
    [
        (None, None),
        (frozenset(), frozenset()),
        (frozenset("m"), frozenset({"m#page=1", "m#page=2", "m#page=3"})),
        (frozenset({"m#page=2", "t"}), frozenset({"m#page=2", "t"})),
    ],
)
def test_pages_are_relevant_where_their_document_is(
    images: ImageLoader, relevant: frozenset[str] | None, pages: frozenset[str] | None
) -> None:
    documents = Document("m", None, "manual.pdf"), Document("t", "A text", None)
    assert with_pages(question(*documents, relevant=relevant), images).relevant == pages
