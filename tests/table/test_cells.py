"""What cells mean: questions, choices, documents, labels and relevance."""

import io
import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrag_batch.errors import RowError
from mmrag_batch.records import Document
from mmrag_batch.table.cells import (
    find_label,
    parse_choices,
    parse_documents,
    parse_question,
    parse_relevant,
    resolve_relevant,
)


def test_a_whole_row_becomes_a_question() -> None:
    question = parse_question(
        {
            "question_text": "What does it cost?",
            "question_image": "a.png",
            "answer_choices": '["one", "two"]',
            "documents": '["It costs two.", "b.png", {"id": "c", "text": "t", "image": "c.gif"}]',
            "label": "two",
            "relevant": '[0, "c"]',
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
    assert question.label == 1
    assert question.relevant == frozenset({"0", "c"})


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  ", "nan", "NaN", "None", "null"])
def test_empty_cells_say_nothing(empty: object) -> None:
    names = ("question_image", "answer_choices", "documents", "label", "relevant")
    question = parse_question({"question_text": "Why?"} | dict.fromkeys(names, empty))
    assert question.image is None
    assert question.choices == ()
    assert question.documents == ()
    assert question.label is None
    assert question.relevant is None


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
        ("a.svg", False),
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


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ("b", 1),
        ("1", 2),
        ("0", 0),
        ("2", 2),
        (2, 2),
        ("2.0", 2),
        (0.0, 0),
        ("3", None),
        ("-1", None),
        ("B", None),
        ("0.5", None),
        (None, None),
        ("9" * 5000, None),
    ],
)
def test_a_label_is_a_choice_or_its_index(cell: object, label: int | None) -> None:
    assert find_label(cell, ("a", "b", "1")) == label


def test_f05_an_empty_label_is_not_the_choice_of_that_name() -> None:
    assert find_label(None, ("None", "nan")) is None
    assert find_label(float("nan"), ("None", "nan")) is None
    assert find_label("None", ("None", "nan")) == 0


def test_an_empty_list_of_relevant_documents_is_not_unknown() -> None:
    assert parse_question({"question_text": "a", "relevant": "[]"}).relevant == frozenset()


def test_relevant_names_documents_by_id_or_index() -> None:
    documents = parse_documents([{"id": "x", "text": "a"}, "b", "c"])
    items = parse_relevant('["x", 1, "2", 7, -1, "y"]')
    assert items is not None
    assert resolve_relevant(items, documents) == (
        frozenset({"x", "1", "2"}),
        (7, -1, "y"),
    )


@pytest.mark.parametrize("cell", ["3", "x", '{"a": 1}', "[1.0]", "[true]", "[null]", "[[1]]"])
def test_relevant_that_is_no_list_of_names_is_told(cell: str) -> None:
    with pytest.raises(RowError, match="column 'relevant'") as caught:
        parse_relevant(cell)
    assert caught.value.code == "bad_relevant"


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
LISTS = st.lists(TEXT.filter(str.strip), unique=True, max_size=6)


@settings(max_examples=60, deadline=None)
@given(choices=LISTS)
def test_a_list_is_read_back_however_it_was_written(choices: list[str]) -> None:
    expected = tuple(choices)
    assert parse_choices(choices) == expected
    assert parse_choices(json.dumps(choices)) == expected
    assert parse_choices(json.dumps(choices, ensure_ascii=False)) == expected
    assert parse_choices(repr(choices)) == expected


@settings(max_examples=20, deadline=None)
@given(choices=LISTS)
def test_a_list_that_pandas_wrote_is_read_back(choices: list[str]) -> None:
    written = pd.DataFrame({"answer_choices": [choices]}).to_csv(index=False)
    cell = pd.read_csv(io.StringIO(written), keep_default_na=False)["answer_choices"][0]
    assert parse_choices(str(cell)) == tuple(choices)


@settings(max_examples=60, deadline=None)
@given(cell=st.text(max_size=30) | st.text("[]'\"\\,{}: ab0\n", max_size=30))
def test_f03_any_text_is_documents_or_a_row_error(cell: str) -> None:
    try:
        documents = parse_documents(cell)
    except RowError as error:
        assert error.code == "bad_documents"
    else:
        assert len({document.id for document in documents}) == len(documents)
