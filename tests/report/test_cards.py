"""One row as a page shows it."""

from pathlib import Path

from PIL import Image

from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.report.cards import Card, find_outcome, make_card
from mmrag_batch.report.explanation import Answered
from mmrag_batch.report.thumbnails import Thumbnails


def card(folder: Path, documents: tuple[Document, ...], relevant: set[str], *kept: str) -> Card:
    """A row with these documents, of which some were kept."""
    question = Question("Which?", None, ("a", "b"), documents, 0, frozenset(relevant))
    row = Row(0, 2, "q", {"question_text": "Which?"}, question)
    evidence = tuple((name, 1.0) for name in kept)
    answer = Answered("ok", "a", 0, 0.7, None, (0.7, 0.3), evidence, None, True)
    return make_card(
        row,
        answer,
        "at random",
        True,
        number=4,
        groups={},
        command="mmrag-batch explain out.csv q",
        thumbnails=Thumbnails(ImageLoader(folder)),
    )


def test_evidence_comes_first_and_what_was_missed_after_it(tmp_path: Path) -> None:
    documents = (Document("x", "one", None), Document("y", "two", None), Document("z", "no", None))
    made = card(tmp_path, documents, {"x", "y"}, "z", "y")
    items = [(item.id, item.rank, item.text, item.is_relevant) for item in made.items]
    assert items == [("z", 1, "no", False), ("y", 2, "two", True), ("x", None, "one", True)]
    assert (made.evidence, made.outcome, made.number) == ("kept", "right", 4)
    marks = [(choice.is_label, choice.is_predicted) for choice in made.choices]
    assert marks == [(True, True), (False, False)]


def test_a_page_of_a_relevant_document_is_not_missed(tmp_path: Path) -> None:
    made = card(tmp_path, (Document("m", "title", "m.pdf"),), {"m"}, "m#page=2")
    (item,) = made.items
    assert (item.id, item.is_relevant, item.text) == ("m#page=2", True, "title")
    assert item.picture is not None
    assert item.picture.source == "m.pdf#page=2"
    assert "no such file" in (item.picture.problem or "")


def test_a_document_of_elsewhere_is_named(tmp_path: Path) -> None:
    (item,) = card(tmp_path, (), set(), "corpus-7").items
    assert (item.id, item.text, item.picture) == ("corpus-7", None, None)


def test_a_picture_is_small_and_keeps_its_shape(tmp_path: Path) -> None:
    Image.new("RGB", (1200, 300), "red").save(tmp_path / "wide.png")
    picture = Thumbnails(ImageLoader(tmp_path)).make("wide.png", 144)
    assert (picture.width, picture.height, picture.problem) == (144, 36, None)
    assert picture.uri.startswith("data:image/jpeg;base64,/9j/")


def test_an_outcome_is_a_word() -> None:
    cases = [(True, "ok"), (False, "degraded"), (None, "ok"), (False, "error"), (None, "error")]
    assert [find_outcome(*case) for case in cases] == [
        *("right", "wrong", "no label"),
        *("no answer", "no answer"),
    ]
