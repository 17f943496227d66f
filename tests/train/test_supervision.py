import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engines.scripted import ScriptedEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Document, Evidence, Question, Row
from mmrag_batch.train import supervision
from mmrag_batch.train.likelihoods import measure_likelihoods
from mmrag_batch.train.supervision import (
    ByAnswer,
    by_likelihood,
    by_relevant,
    needs_likelihood,
    texts_of,
)
from mmrag_batch.train.text_loss import TextLoss
from mmrag_batch.train.wording import holds, normalized

CHOICES = ("12 coins", "red", "2")
SPEC = PromptSpec(1, 300, "text")
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


def question_of(one: Row) -> Question:
    assert one.question is not None
    return one.question


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


@pytest.mark.parametrize(
    ("choice", "text", "held"),
    [
        ("5", "It is -5.", False),
        ("5", "It is \u22125.", False),
        ("-5", "It is \u22125.", True),
        ("-5", "From 3-5.", False),
        ("10", "At 10:30.", False),
        ("30", "At 10:30.", False),
        ("5", "1/5 of it", False),
        ("1", "1/5 of it", False),
        ("5", "5.5", False),
        ("5", "It weighs .5", False),
        ("5", "15 or 51", False),
        ("5", "1'005, 1,005 or 5,000", False),
        ("5", "2024-05-5", False),
        ("5", "5\u00bd or 5\u00b2 or x5", False),
        ("5", "A 5-door car", False),
        ("5", "It is 5.Then 6.", True),
        ("5", "Sides:5,red", True),
        ("5", "No.5", True),
        ("5", "\uff08\u5171 5 \u4e2a\uff09", True),
        ("5", "\u51715\u4e2a", True),
        ("5", "15, 5.5, or 5!", True),
        ("green", "red,green,blue", True),
        ("green", "red/green;blue", True),
        ("green", "a.green.b", True),
        ("green", "evergreen, green-blue", False),
        ("red", "red_cube, red2", False),
        ("caf\u00e9", "The cafe\u0301 is open", True),
        ("CAFE\u0301", "The caf\u00e9 is open", True),
        ("cafe", "The cafe\u0301 is open", False),
        ("\u7ea2\u8272", "\u8fd9\u4e2a\u7acb\u65b9\u4f53\u662f\u7ea2\u8272\u7684\u3002", True),
        ("\u8d64", "\u7acb\u65b9\u4f53\u306f\u8d64\u3067\u3059", True),
        ("\u30d0\u30b9", "\u9752\u3044\u30d0\u30b9\u3060", True),
        ("\u0e41\u0e14\u0e07", "\u0e2a\u0e35\u0e41\u0e14\u0e07\u0e21\u0e32\u0e01", True),
        ("\u0e01", "\u0e01\u0e35", False),
        ("\ube68\uac04\uc0c9", "\ube68\uac04\uc0c9\uc785\ub2c8\ub2e4", True),
        ("\u0932\u093e\u0932", "\u0932\u093e\u0932 \u0930\u0902\u0917", True),
        ("\u0932\u093e\u0932", "\u0917\u0941\u0932\u093e\u0932 \u0930\u0902\u0917", False),
        ("\u0930\u0902\u0917", "\u0930\u0902\u0917\u0940", False),
        ("C++", "in C++11", True),
    ],
)
def test_choices_are_found_as_words_and_numbers_of_their_own(
    choice: str, text: str, held: bool
) -> None:
    """In scripts with spaces and without: Han, kana, Thai, Hangul, Devanagari."""
    assert holds(normalized(text), choice) == held


def test_without_choices_a_text_that_holds_the_label_helps() -> None:
    asked = row("Nothing.", "It costs 12 coins.", label=None)
    assert asked.question is not None
    question = replace(asked.question, choices=(), answers=("12 coins", "a dozen"))
    assert by_answer(replace(asked, question=question)) == {"1": 1.0}
    assert needs_likelihood(replace(asked, question=question))


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
    likelihoods = {0: {"0": math.log(0.8), "1": math.log(0.4), "2": math.log(0.2)}}
    found = by_likelihood(likelihoods, row("a", "b", "c"))
    assert found["0"] == 1.0
    assert found["1"] == pytest.approx(1 / 32)
    assert found["2"] == pytest.approx(1 / 1024)


def test_of_a_document_that_could_not_be_asked_about_nothing_is_known() -> None:
    likelihoods = {0: {"0": math.log(0.8), "2": math.log(0.2)}}
    found = by_likelihood(likelihoods, row("a", "Too long a text.", "c", None))
    assert [name for name, share in found.items() if math.isnan(share)] == ["1", "3"]
    assert found["0"] == 1.0


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
        SPEC,
    )


@pytest.fixture
def text_loss(tiny_generator_dir: Path, tmp_path: Path) -> TextLoss:
    model = load_model(tiny_generator_dir, dtype=torch.float32)
    return TextLoss(tiny_generator_dir, model, ImageLoader(tmp_path), SPEC, batch_size=2)


def rows(count: int) -> list[Row]:
    return [row("A text.", f"Another, {n}.", "word " * 400, None, number=n) for n in range(count)]


def test_each_document_that_can_be_shown_gets_a_likelihood(
    answerer: Answerer, text_loss: TextLoss, tmp_path: Path
) -> None:
    found = measure_likelihoods(
        rows(3), answerer, text_loss, SPEC, tmp_path / "found.jsonl", "subject"
    )
    assert {number: sorted(item) for number, item in found.items()} == {
        number: ["0", "1"] for number in range(3)
    }
    assert all(value < 0 for item in found.values() for value in item.values())


def test_without_choices_it_is_that_of_the_text(
    answerer: Answerer, text_loss: TextLoss, tmp_path: Path
) -> None:
    """In turns with rows that have choices, whose likelihoods stay what they were."""
    plain = rows(4)
    mixed = [replace(one, question=replace(question_of(one), label=1)) for one in plain]
    for one in mixed[1::2]:
        one.question = replace(question_of(one), choices=(), label=None, answers=("red",))
    found = measure_likelihoods(mixed, answerer, text_loss, SPEC, tmp_path / "mixed", "subject")
    assert {number: sorted(item) for number, item in found.items()} == {
        number: ["0", "1"] for number in range(4)
    }
    chosen = [mixed[0], mixed[2]]
    alone = measure_likelihoods(chosen, answerer, text_loss, SPEC, tmp_path / "alone", "subject")
    assert {number: found[number] for number in alone} == alone
    shown = replace(mixed[1], evidence=(Evidence(question_of(mixed[1]).documents[0], 0.0),))
    [loss] = text_loss([shown])
    assert loss is not None
    assert found[1]["0"] == pytest.approx(-loss, rel=1e-4)
    assert loss > 1


def test_a_picture_that_has_no_place_in_the_prompt_is_not_asked_about(
    answerer: Answerer, text_loss: TextLoss, tmp_path: Path
) -> None:
    for name in ("picture.png", "own.png"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    (plain,) = rows(1)
    assert plain.question is not None
    pictured = replace(plain, number=1, question=replace(plain.question, image="own.png"))
    found = measure_likelihoods(
        [plain, pictured], answerer, text_loss, SPEC, tmp_path / "f.jsonl", "subject"
    )
    assert sorted(found[0]) == ["0", "1", "3"]
    assert sorted(found[1]) == ["0", "1"]


def test_a_run_that_was_killed_goes_on(
    answerer: Answerer, text_loss: TextLoss, tmp_path: Path
) -> None:
    file = tmp_path / "found.jsonl"
    expected = measure_likelihoods(rows(6), answerer, text_loss, SPEC, file, "subject")
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][:9])
    assert measure_likelihoods(rows(6), answerer, text_loss, SPEC, file, "subject") == expected
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_likelihoods_of_something_else_are_measured_anew(
    answerer: Answerer, text_loss: TextLoss, tmp_path: Path
) -> None:
    file = tmp_path / "found.jsonl"
    measure_likelihoods(rows(6), answerer, text_loss, SPEC, file, "one")
    assert len(measure_likelihoods(rows(2), answerer, text_loss, SPEC, file, "another")) == 2
    assert len(file.read_text().splitlines()) == 3
