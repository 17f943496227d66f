"""What labels and relevance mean: decided for a whole column, and nothing left out in silence."""

import json
from pathlib import Path

import pytest

from mmrag_batch.records import Document
from mmrag_batch.table.truth import (
    find_ranks,
    find_relevant,
    read_labelled_rows,
    read_labels,
    right_answer,
)

COUNTS = ["1", "2", "3", "4"]
COLOURS = ["red", "green", "blue"]


def write_csv(folder: Path, choices: list[str], *labels: str) -> Path:
    """A table of questions with these choices and labels, as a spreadsheet has it."""
    cell = '"' + json.dumps(choices).replace('"', '""') + '"'
    path = folder / "in.csv"
    lines = ["question_text,answer_choices,label", *(f"Which?,{cell},{one}" for one in labels)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_jsonl(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"question_text": "Which?"} | row) + "\n" for row in rows))
    return path


def found(path: Path, reading: str | None = None) -> list[int | None]:
    rows = read_labelled_rows(path, reading)  # type: ignore[arg-type]
    return [row.question.label if row.question else None for row in rows]


def test_field_01_a_choice_that_pandas_made_a_float_is_read_as_that_choice(tmp_path: Path) -> None:
    path = write_csv(tmp_path, COUNTS, "2.0", "1.0", "", "4.0")
    assert found(path) == [1, 0, None, 3]


@pytest.mark.parametrize(
    ("choices", "labels", "expected"),
    [
        (COLOURS, ("2.0", "", "0.0"), [2, None, 0]),  # indices, made floats by a blank
        (COUNTS, ("0", "3", "2"), [0, 3, 2]),  # an index that is no choice settles the column
        (COUNTS, ("4", "3", "2"), [3, 2, 1]),  # and a choice that is no index
        (["10", "20"], ("20.0", "10"), [1, 0]),
        (["0.5", "1.5"], ("1.50", ".5"), [1, 0]),
        (["yes", "no"], ("Yes", "NO "), [0, 1]),
        (["true", "false"], ("TRUE", "False"), [0, 1]),
        (COLOURS, ("B", "a", "(C)"), [1, 0, 2]),
        (["B", "A"], ("B", "A"), [0, 1]),  # choices that are letters are read as texts
        (["Yes", "yes"], ("yes", "Yes"), [1, 0]),  # told apart by case alone
        (["caf\u00e9", "bar"], ("cafe\u0301", "bar"), [0, 1]),
        (["None", "nan"], ("None", ""), [0, None]),
        (COLOURS, ("9" * 5000, "nan"), [None, None]),
    ],
)
def test_the_whole_column_tells_what_a_label_is(
    tmp_path: Path, choices: list[str], labels: tuple[str, ...], expected: list[int | None]
) -> None:
    assert found(write_csv(tmp_path, choices, *labels)) == expected


def test_where_texts_and_indices_fit_it_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    path = write_csv(tmp_path, COUNTS, "2", "1", "3")
    assert found(path) == [1, 0, 2]
    assert found(path, "index") == [2, 1, 3]
    assert read_labels(path).describe() == [
        "label: 3 read, 3 as the text of a choice.",
        "label: 3 would be other choices if read as a 0-based index; say which is right: "
        "`--labels text` or `--labels index`.",
    ]
    assert len(read_labels(path, "index").describe()) == 1


def test_an_integer_of_a_file_that_has_types_is_an_index(tmp_path: Path) -> None:
    labels: list[object] = [2, "2", 2.0, True]
    rows: list[dict[str, object]] = [{"answer_choices": COUNTS, "label": one} for one in labels]
    assert found(write_jsonl(tmp_path, *rows)) == [2, 2, 2, None]  # and so are its neighbours


def test_field_03_a_label_of_another_kind_than_most_is_still_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path, COLOURS, "red", "B", "B", "c")
    assert found(path) == [0, 1, 1, 2]
    assert read_labels(path).describe() == [
        "label: 4 read, 3 as a letter, 1 as the text of a choice."
    ]


def test_field_03_a_label_that_cannot_be_read_is_counted_and_shown(tmp_path: Path) -> None:
    path = write_csv(tmp_path, COLOURS, "red", "E", "purple", *["green"] * 3)
    assert read_labels(path).describe()[1:] == [
        "label: 2 name no choice of their row (line 3: 'E', line 4: 'purple')."
    ]


def test_rows_without_choices_are_labelled_in_free_form(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"label": "10 t"}, {"label": None}, {"label": "x"})
    labels = read_labels(path)
    assert (labels.free_form, labels.unreadable, labels.describe()) == (2, 0, [])


def test_without_choices_the_right_answers_are_texts(tmp_path: Path) -> None:
    labels = ["10 t", ["10 t", None, " ten t"], None, 7, "x"]
    rows: list[dict[str, object]] = [{"label": label, "answer_choices": []} for label in labels]
    path = write_jsonl(tmp_path, *rows, {"label": 1, "answer_choices": ["x", "y"]})
    questions = [row.question for row in read_labelled_rows(path) if row.question]
    texts = [("10 t",), ("10 t", "ten t"), (), ("7",), ("x",), ()]
    assert [question.answers for question in questions] == texts
    assert list(map(right_answer, questions)) == ["10 t", "10 t", None, "7", "x", "y"]


DOCUMENTS = (Document("x", "a", None), Document("1", "b", None), Document("2", "c", None))


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ('["x", 1, "2"]', {"x", "1", "2"}),
        ("[0.0]", {"x"}),
        ("0", {"x"}),
        ("2.0", {"2"}),
        (0, {"x"}),
        (1.0, {"1"}),
        ("[]", set()),
    ],
)
def test_relevant_names_documents_by_id_or_index(cell: object, ids: set[str]) -> None:
    assert find_relevant(cell, DOCUMENTS) == (frozenset(ids), ())


PAGES = (
    Document("m", None, "manual.pdf"),
    Document("n", None, "manual.pdf#page=2"),
    Document("p", None, "photo.png"),
    Document("q#page=1", "a", None),
    Document("r", "b", "unnamed"),
)


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ('["m#page=3", "n"]', {"m#page=3", "n"}),
        ('["m#page=3", "m", "m#page=1"]', {"m"}),
        ('["q#page=1", "r#page=2"]', {"q#page=1", "r#page=2"}),
    ],
)
def test_relevant_names_pages_of_what_may_be_a_pdf(cell: str, ids: set[str]) -> None:
    assert find_relevant(cell, PAGES) == (frozenset(ids), ())


@pytest.mark.parametrize("name", ["m#page=0", "n#page=2", "p#page=1", "x#page=1", "q", "m#3"])
def test_what_has_no_pages_names_none(name: str) -> None:
    ids, (error,) = find_relevant([name], PAGES)
    assert (ids, error.code) == (frozenset(), "bad_relevant")


@pytest.mark.parametrize(
    ("evidence", "relevant", "ranks"),
    [
        (["m#page=2", "m#page=1"], {"m"}, (1,)),
        (["m#page=2", "m#page=1"], {"m#page=1"}, (2,)),
        (["p", "m#page=2", "n"], {"m", "n"}, (2, 3)),
        (["q#page=1"], {"q"}, ()),
        (["m"], {"m"}, (1,)),
    ],
)
def test_a_page_is_found_for_its_document_once(
    evidence: list[str], relevant: set[str], ranks: tuple[int, ...]
) -> None:
    assert find_ranks(evidence, relevant, PAGES) == ranks


@pytest.mark.parametrize("cell", [None, "", "nan", float("nan")])
def test_an_empty_cell_says_nothing_of_relevance(cell: object) -> None:
    assert find_relevant(cell, DOCUMENTS) == (None, ())


@pytest.mark.parametrize("cell", ["x", "0, 1", '{"a": 1}', "true"])
def test_field_15_what_is_no_list_tells_nothing_and_is_told(cell: str) -> None:
    ids, (error,) = find_relevant(cell, DOCUMENTS)
    assert (ids, error.code) == (None, "bad_relevant")
    assert "column 'relevant'" in str(error)


def test_what_names_no_document_is_told_beside_those_that_do() -> None:
    ids, errors = find_relevant('["x", 7, -1, "y", true, null, [1], 0.5]', DOCUMENTS)
    assert ids == frozenset({"x"})
    assert [str(error).partition(":")[0] for error in errors] == [
        f"column 'relevant', item {number}" for number in range(1, 8)
    ]
