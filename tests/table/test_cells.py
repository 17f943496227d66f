"""What cells mean: questions, choices and documents."""

import json

import pytest

from mmrag_batch.errors import RowError
from mmrag_batch.records import Document
from mmrag_batch.table.cells import (
    parse_choices,
    parse_documents,
    parse_question,
)


def test_a_whole_row_becomes_a_question() -> None:
    question = parse_question(
        {
            "question_text": "What does it cost?",
            "question_image": "a.png",
            "answer_choices": '["one", "two"]',
            "documents": '["It costs two.", "b.png", {"id": "c", "text": "t", "image": "c.gif"}]',
            "anything": "else",
        }
    )
    assert question.text == "What does it cost?"
    assert question.image == "a.png"
    assert question.choices == ("one", "two")
    assert question.documents == (
        Document("0", "It costs two.", None),
        Document("1", None, "b.png"),
        Document("c", "t", "c.gif"),
    )


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  ", "nan", "NaN", "None", "null"])
def test_empty_cells_say_nothing(empty: object) -> None:
    names = ("question_image", "answer_choices", "documents")
    question = parse_question({"question_text": "Why?"} | dict.fromkeys(names, empty))
    assert question.image is None
    assert question.choices == ()
    assert question.documents == ()


@pytest.mark.parametrize("text", [None, "", " \n", 7, ["a"]])
def test_a_question_needs_a_text(text: object) -> None:
    with pytest.raises(RowError, match="column 'question_text': expected a question") as caught:
        parse_question({"question_text": text})
    assert caught.value.code == "bad_question"


def test_a_question_image_must_be_text() -> None:
    with pytest.raises(RowError, match="'question_image': expected an image path") as caught:
        parse_question({"question_text": "a", "question_image": {"bytes": "x"}})
    assert caught.value.code == "bad_question"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("a, b", r"expected a list of texts, as JSON, found 'a, b'"),
        ('{"a": 1}', "expected a list of texts"),
        ("[1, 2]", "item 0: expected a text, found 1"),
        ('["a", ""]', "item 1: expected a text, found nothing"),
        ('["a", "b", "a"]', "item 2: expected each choice once, found 'a'"),
        (json.dumps([str(n) for n in range(27)]), "at most 26 choices"),
        ("['a' 'b']", "expected a list of texts, as JSON"),
        ("__import__('os').getcwd()", "expected a list"),
        ("[" * 5000, "expected a list"),
        ('["a\\u0000"]', "without NUL"),
        ('["\\ud800"]', "surrogate"),
    ],
)
def test_f06_choices_that_are_none_are_told(cell: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        parse_choices(cell)
    assert caught.value.code == "bad_choices"
    assert "column 'answer_choices'" in str(caught.value)


def test_f06_twenty_six_choices_have_a_letter_each() -> None:
    choices = [str(n) for n in range(26)]
    assert parse_choices(choices) == tuple(choices)


@pytest.mark.parametrize(
    ("cell", "choices"),
    [
        ('["a, b", "c"]', ("a, b", "c")),
        ("['it\\'s', \"x\"]", ("it's", "x")),
        (r"['\d+', 'a\\b']", (r"\d+", r"a\b")),
        ("['he said \\'a\\' \\'b\\'']", ("he said 'a' 'b'",)),
        ("[\n 'a',\n 'b'\n]", ("a", "b")),
    ],
)
def test_f06_json_and_python_lists_are_read(cell: str, choices: tuple[str, ...]) -> None:
    assert parse_choices(cell) == choices


@pytest.mark.parametrize(
    ("item", "image"),
    [
        ("a.png", True),
        ("folder/A photo.JPEG", True),
        ("scan.tif", True),
        ("https://example.org/a.jpg", True),
        ("data:image/png;base64,AAAA", True),
        ("data: see the table", False),
        ("The file is\nnamed a.png", False),
        ("Look at a.png.", False),
        ("", False),
    ],
)
def test_a_plain_string_is_an_image_by_its_suffix(item: str, image: bool) -> None:
    (document,) = parse_documents([item])
    assert (document.image, document.text) == ((item, None) if image else (None, item))


def test_an_object_says_outright_what_it_is() -> None:
    documents = parse_documents(
        [{"text": "a.png"}, {"image": "photo", "text": ""}, {"id": "", "text": "x", "image": None}]
    )
    assert documents == (
        Document("0", "a.png", None),
        Document("1", None, "photo"),
        Document("2", "x", None),
    )


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("not a list", "expected a list of texts, image paths or objects"),
        ('"a"', "expected a list"),
        ({"text": "a"}, "expected a list"),
        ([1], "item 0: expected a text or an object, found 1"),
        (["a", {"id": "x"}], "item 1: expected a `text` or an `image`"),
        ([{"text": 5}], "expected a text as `text`, found 5"),
        ([{"id": 5, "text": "a"}], "expected a text as `id`, found 5"),
        ([{"id": "1", "text": "a"}, "b"], "item 1: expected an id of its own, found '1'"),
    ],
)
def test_f03_documents_that_are_none_are_told(cell: object, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        parse_documents(cell)
    assert caught.value.code == "bad_documents"


def test_a_message_shows_only_the_start_of_a_long_cell() -> None:
    with pytest.raises(RowError) as caught:
        parse_documents("x" * 100_000)
    assert len(str(caught.value)) < 250
