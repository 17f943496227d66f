import math
from pathlib import Path

import pytest

from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engines.scripted import ScriptedEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.train import supervision
from mmrag_batch.train.likelihoods import measure_likelihoods
from mmrag_batch.train.supervision import (
    ByAnswer,
    by_likelihood,
    by_relevant,
    needs_likelihood,
    texts_of,
)

CHOICES = ("12 coins", "red", "2")
by_answer = ByAnswer(["Nothing.", "Red.", *map("Word {}.".format, range(100))])
"""Where one document in a hundred or fewer holds a choice."""


def row(
    *texts: str | None,
    label: int | None = 0,
    relevant: frozenset[str] | None = None,
    number: int = 0,
) -> Row:
    documents = tuple(
        Document(str(n), text, None if text else "picture.png") for n, text in enumerate(texts)
    )
    question = Question("What?", None, CHOICES, documents, label, relevant)
    return Row(number, number + 2, str(number), {}, question)


def test_named_documents_are_relevant() -> None:
    assert by_relevant(row("a", "b", relevant=frozenset({"1"}))) == {"1": 1.0}
    assert by_relevant(row("a", "b")) == {}


@pytest.mark.parametrize(
    ("label", "text", "holds"),
    [
        (0, "It costs 12 coins.", True),
        (0, "It costs 12\n COINS", True),
        (0, "It costs 112 coins.", False),
        (0, "It costs 12 coinsworth", False),
        (1, "Red.", True),
        (1, "It is a red-brick house", False),
        (1, "bored", False),
        (1, "infra-red", False),
        (2, "It weighs 2.", True),
        (2, "It weighs 2.5 kilos", False),
        (2, "It weighs 1,2 kilos", False),
        (2, "(2)", True),
    ],
)
def test_a_text_that_holds_the_right_choice_as_a_word_helps(
    label: int, text: str, holds: bool
) -> None:
    assert by_answer(row("Nothing.", text, label=label)) == ({"1": 1.0} if holds else {})


def test_what_every_document_holds_tells_nothing() -> None:
    assert by_answer(row("12 coins", "12 coins!")) == {}
    assert by_answer(row("12 coins", "12 coins!", "No.")) == {"0": 1.0, "1": 1.0}


def test_what_a_picture_shows_is_not_known() -> None:
    found = by_answer(row("12 coins", "None.", None))
    assert math.isnan(found["2"])
    assert (found["0"], len(found)) == (1.0, 2)


def test_a_choice_that_is_common_among_documents_tells_nothing() -> None:
    rare = ByAnswer(["red", *["blue"] * 9])
    common = ByAnswer(["red", "blue"])
    asked = row("A red cube.", "No.", "No.", label=1)
    assert rare(asked) == {"0": 1.0}  # one of three would hold it at 1 - 0.9 ** 3
    assert common(asked) == {}


def test_how_common_a_choice_is_is_known_from_a_sample_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervision, "SAMPLE", 200)
    texts = ["red"] * 3000 + ["blue"] * 7000
    assert ByAnswer(iter(texts))._frequency("red") == pytest.approx(0.3, abs=0.08)


def test_the_texts_are_those_of_all_documents() -> None:
    assert list(texts_of([row("a", None, "b"), Row(1, 3, "1", {}), row("c")])) == ["a", "b", "c"]


def test_what_is_filled_goes_before_answers_and_likelihoods() -> None:
    given = row("12 coins", "None.", relevant=frozenset({"1"}))
    assert by_answer(given) == by_likelihood({0: {"0": 0.0, "1": -9.0}}, given) == {"1": 1.0}
    none = row("12 coins", "None.", relevant=frozenset())
    assert by_answer(none) == by_likelihood({0: {"0": 0.0, "1": -9.0}}, none) == {}


def test_without_a_label_no_answer_is_known() -> None:
    assert by_answer(row("12 coins", "None.", label=None)) == {}


def test_shares_grow_with_likelihood() -> None:
    found = by_likelihood({0: {"0": math.log(0.8), "1": math.log(0.4), "2": math.log(0.2)}}, row())
    assert found["0"] == 1.0
    assert found["1"] == pytest.approx(1 / 32)
    assert found["2"] == pytest.approx(1 / 1024)


def test_a_row_whose_documents_change_little_teaches_nothing() -> None:
    assert by_likelihood({0: {"0": -1.0, "1": -1.1, "2": -1.2}}, row()) == {}
    assert by_likelihood({}, row()) == {}


@pytest.mark.parametrize(
    ("asked", "needs"),
    [
        (row("a", "b"), True),
        (row("a"), False),
        (row("a", "b", label=None), False),
        (row("a", "b", relevant=frozenset("1")), False),
        (Row(0, 2, "0", {}), False),
    ],
)
def test_the_generator_is_asked_about_what_is_not_known(asked: Row, needs: bool) -> None:
    assert needs_likelihood(asked) == needs


@pytest.fixture
def answerer(tiny_generator_dir: Path, tmp_path: Path) -> Answerer:
    return Answerer(
        Renderer(tiny_generator_dir),
        ScriptedEngine(),
        ImageLoader(tmp_path),
        PromptSpec(1, 300, "text"),
    )


def rows(count: int) -> list[Row]:
    return [row("A text.", f"Another, {n}.", "word " * 400, None, number=n) for n in range(count)]


def test_each_document_that_can_be_shown_gets_a_likelihood(
    answerer: Answerer, tmp_path: Path
) -> None:
    found = measure_likelihoods(rows(3), answerer, tmp_path / "found.jsonl", "subject")
    assert {number: sorted(item) for number, item in found.items()} == {
        number: ["0", "1"] for number in range(3)
    }
    assert all(value < 0 for item in found.values() for value in item.values())


def test_a_run_that_was_killed_goes_on(answerer: Answerer, tmp_path: Path) -> None:
    file = tmp_path / "found.jsonl"
    expected = measure_likelihoods(rows(6), answerer, file, "subject")
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][:9])
    assert measure_likelihoods(rows(6), answerer, file, "subject") == expected
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_likelihoods_of_something_else_are_measured_anew(
    answerer: Answerer, tmp_path: Path
) -> None:
    file = tmp_path / "found.jsonl"
    measure_likelihoods(rows(6), answerer, file, "one")
    assert len(measure_likelihoods(rows(2), answerer, file, "another")) == 2
    assert len(file.read_text().splitlines()) == 3
