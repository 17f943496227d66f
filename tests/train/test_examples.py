import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrag_batch.errors import InputError
from mmrag_batch.families.family import open_family
from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec, Scoring, build_prompt
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.train.examples import (
    IGNORED,
    Collator,
    Example,
    Examples,
    SameImageCount,
    labelled_rows,
    relevant_evidence,
    weighted_loss,
)
from mmrag_batch.train.mllama import EOS, PAD


@pytest.fixture(scope="module")
def renderer(tiny_generator_dir: Path) -> Renderer:
    return Renderer(tiny_generator_dir)


@pytest.fixture(scope="module")
def rows(demo_table: Path) -> list[Row]:
    images = ImageLoader(demo_table.parent)
    return relevant_evidence(labelled_rows(demo_table), images, top_k=3, seed=0)


def examples(
    rows: Sequence[Row], renderer: Renderer, table: Path, scoring: Scoring = "letter"
) -> Examples:
    spec = PromptSpec(2, 1024, scoring)
    return Examples(rows, renderer, ImageLoader(table.parent), spec, seed=0)


@pytest.fixture
def lettered(rows: list[Row], renderer: Renderer, demo_table: Path) -> Examples:
    return examples(rows, renderer, demo_table)


def question_of(row: Row) -> Question:
    assert row.question is not None
    return row.question


def token_id(directory: Path, token: str) -> int:
    tokens = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    (found,) = (int(item["id"]) for item in tokens if item["content"] == token)
    return found


def test_prompts_are_those_of_predict(
    rows: list[Row], renderer: Renderer, demo_table: Path, tiny_generator_dir: Path
) -> None:
    found = examples(rows, renderer, demo_table, "text")
    for index, row in enumerate(rows[:10]):
        prompt = build_prompt(question_of(row), row.evidence, PromptSpec(2, 0, "text"))
        assert found[index].prompt == renderer.render(prompt.messages)
        assert len(found[index].images) == len(prompt.images) == found.image_count(index)
        *answer, end = found[index].answer
        assert renderer.decode(answer) == row.cells["label"]
        assert end == token_id(tiny_generator_dir, EOS)


def test_choices_come_in_a_new_order_and_the_label_follows(
    lettered: Examples, rows: list[Row], renderer: Renderer
) -> None:
    for index in range(5):
        seen = set()
        for epoch in range(25):
            lettered.set_epoch(epoch)
            example = lettered[index]
            assert lettered[index] == example
            letter = renderer.decode(example.answer)
            lines = renderer.decode(example.prompt).splitlines()
            assert f"{letter}. {rows[index].cells['label']}" in lines
            seen.add(letter)
        assert len(seen) == len(question_of(rows[index]).choices)


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    table = tmp_path / "questions.csv"
    head = "question_text,answer_choices,documents,label\n"
    table.write_text(head + 'Q?,"[""a"", ""b""]",[],b\nQ?,"[""a""]",[],c\n,"[""a""]",[],a\n')
    (row,) = labelled_rows(table)
    assert question_of(row).label == 1
    table.write_text(head + 'Q?,"[""a"", ""b""]",[],\n')
    with pytest.raises(InputError, match="no row has a `label`"):
        labelled_rows(table)


def test_without_choices_the_label_is_the_answer(
    tmp_path: Path, renderer: Renderer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first text, where it is a list; what is empty is passed over and counted."""
    caplog.set_level("INFO")
    table = tmp_path / "questions.csv"
    labels = ["10 t", "", " NaN", '"[""ten t"", ""10 t""]"', "[]", " b "]
    lines = [f"Q{number}?,,{label}\n" for number, label in enumerate(labels)]
    table.write_text("question_text,answer_choices,label\n" + "".join(lines))
    rows = labelled_rows(table)
    assert [row.number for row in rows] == [0, 3, 5]
    assert "3 rows without a right answer are passed over" in caplog.text
    for scoring in ("letter", "text"):
        found = examples(rows, renderer, table, scoring)
        found.set_epoch(1)
        answers = [renderer.decode(found[index].answer) for index in range(3)]
        assert answers == ["10 t", "ten t", "b"]
        assert found[0].answer == renderer.answer_ids("10 t")
        assert "Answer in a few words." in renderer.decode(found[0].prompt)


def test_relevant_evidence_comes_first_and_broken_images_not_at_all(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    documents = (
        Document("noise", "Noise.", None),
        Document("lost", "Lost.", "lost.png"),
        Document("shown", None, "red.png"),
        Document("right", "Right.", "red.png"),
    )
    question = Question("Q?", None, ("a", "b"), documents, 0, frozenset({"right", "lost"}))
    row = Row(0, 2, "0", {}, question)
    images = ImageLoader(tmp_path)
    orders = set()
    for seed in range(10):
        (found,) = relevant_evidence([row], images, top_k=9, seed=seed)
        orders.add(tuple(item.document.id for item in found.evidence))
    assert orders == {("right", "noise", "shown"), ("right", "shown", "noise")}
    (cut,) = relevant_evidence([row], images, top_k=1, seed=0)
    assert [item.document.id for item in cut.evidence] == ["right"]
    assert row.evidence == ()


def test_the_rows_of_a_batch_show_equally_many_images(lettered: Examples) -> None:
    sampler = SameImageCount(lettered, batch_size=4, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert list(sampler) == orders[-1]
    seen = set()
    for order in orders:
        assert len(order) == len(sampler) == len(set(order))
        for start in range(0, len(order), 4):
            (count,) = {lettered.image_count(index) for index in order[start : start + 4]}
            seen.add(count)
    assert orders[0] != orders[1]
    assert len(seen) > 1


def test_only_what_fills_no_batch_waits(lettered: Examples) -> None:
    whole = SameImageCount(lettered, batch_size=1, seed=0)
    assert sorted(whole) == list(range(len(lettered)))
    assert len(SameImageCount(lettered, batch_size=41, seed=0)) == 0


@pytest.mark.parametrize("prompt_loss", [0.0, 0.25])
def test_loss_falls_on_answers_and_as_told_on_prompts(
    lettered: Examples, tiny_generator_dir: Path, prompt_loss: float
) -> None:
    image_id = token_id(tiny_generator_dir, Mllama.placeholder)
    pad_id = token_id(tiny_generator_dir, PAD)
    collator = Collator(
        open_family(tiny_generator_dir),
        pad_id=pad_id,
        prompt_loss=prompt_loss,
    )
    batch = [lettered[i] for i in range(len(lettered)) if lettered.image_count(i) == 1][:3]
    inputs = collator(batch)
    length = max(len(example.prompt) + len(example.answer) for example in batch)
    for row, example in enumerate(batch):
        padding = length - len(example.prompt) - len(example.answer)
        prompt = [IGNORED if token == image_id else token for token in example.prompt]
        assert IGNORED in prompt
        assert inputs["labels"][row].tolist() == [IGNORED] * padding + prompt + [*example.answer]
        weights = [0.0] * (padding + 1)
        weights += [prompt_loss * (token != IGNORED) for token in prompt[1:]]
        weights += [1.0] * len(example.answer)
        assert inputs["loss_weights"][row].tolist() == weights
    assert len({len(example.prompt) for example in batch}) > 1
    assert inputs["pixel_values"].shape[:2] == (3, 1)


def test_a_text_that_looks_like_a_special_token_carries_loss_as_text(
    renderer: Renderer, tiny_generator_dir: Path
) -> None:
    image_id = token_id(tiny_generator_dir, Mllama.placeholder)
    collator = Collator(
        open_family(tiny_generator_dir),
        pad_id=token_id(tiny_generator_dir, PAD),
        prompt_loss=0.0,
    )
    answer = renderer.answer_ids(Mllama.placeholder)
    labels = collator([Example(prompt=[1, 2], answer=answer, images=[])])["labels"]
    assert labels.tolist() == [[1, 2, *answer]]
    assert image_id not in answer


def test_the_loss_is_the_weighted_mean_of_the_next_tokens() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[0, 1, 0]])
    weights = torch.tensor([[1.0, 0.5, 1.0]])
    expected = (0.5 * math.log(2) + 1.0 * math.log(4 / 3)) / 1.5
    assert weighted_loss(logits, labels, weights).item() == pytest.approx(expected)


def test_the_parts_of_a_mean_add_up_to_it() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 5), torch.randint(5, (4, 6))
    weights = torch.rand(4, 6)
    whole = weighted_loss(logits, labels, weights)
    total = weights[:, 1:].sum()
    parts = [
        weighted_loss(logits[part], labels[part], weights[part], total)
        for part in (slice(1), slice(1, 4))
    ]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item())


def test_an_ignored_token_adds_no_loss() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [9.0, -9.0]]])
    labels = torch.tensor([[0, IGNORED, 0]])
    weights = torch.tensor([[1.0, 0.0, 1.0]])
    assert weighted_loss(logits, labels, weights).item() == pytest.approx(math.log(4 / 3))
