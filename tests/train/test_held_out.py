"""Rows that are held out are scored as `predict` answers them, with choices and in free form."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Question, Row
from mmrag_batch.train.examples import labelled_rows, relevant_evidence
from mmrag_batch.train.held_out import MIN_PROBABILITY, Scorer
from tests.generation.conftest import GENERATOR

SPEC = PromptSpec(max_images=1, max_prompt_tokens=1024, scoring="text")


@pytest.fixture(scope="module")
def choices(demo_table: Path) -> list[Row]:
    rows = labelled_rows(demo_table)[:6]
    return relevant_evidence(rows, ImageLoader(demo_table.parent), top_k=3, seed=0)


@pytest.fixture(scope="module")
def texts(choices: list[Row]) -> list[Row]:
    """The same questions without choices."""
    return [
        replace(as_text(row, str(row.cells["label"])), number=row.number + 6) for row in choices
    ]


def as_text(row: Row, *answers: str) -> Row:
    question = replace(question_of(row), choices=(), label=None, answers=answers)
    return replace(row, question=question)


def question_of(row: Row) -> Question:
    assert row.question is not None
    return row.question


def test_a_text_is_right_where_it_matches_one_of_the_labels_exactly(
    texts: list[Row], demo_table: Path
) -> None:
    """The demo's generator, on the evidence that it was tuned for."""
    labels = [str(row.cells["label"]) for row in texts]
    right = [as_text(row, "another", f"The {label}!") for row, label in zip(texts, labels)]
    wrong = [as_text(row, f"{label} more") for row, label in zip(texts[:2], labels)]
    model = load_model(GENERATOR, dtype=torch.float32)
    model.train()
    scorer = Scorer(GENERATOR, ImageLoader(demo_table.parent), SPEC, batch_size=4)
    assert [scorer.score(model, rows).correct for rows in (right, wrong)] == [6, 0]
    assert model.training


@torch.inference_mode()
def test_the_loss_of_a_text_is_that_of_its_tokens_and_of_the_end(
    texts: list[Row], choices: list[Row], tiny_generator_dir: Path, demo_table: Path
) -> None:
    """The same where rows with choices are beside it, and where a row has no answer."""
    images, renderer = ImageLoader(demo_table.parent), Renderer(tiny_generator_dir)
    model: Any = load_model(tiny_generator_dir, dtype=torch.float32)
    model.eval()
    scorer = Scorer(tiny_generator_dir, images, SPEC, batch_size=4)
    plain = next(replace(row, evidence=()) for row in texts if not question_of(row).image)
    question = question_of(plain)
    prompt = build_prompt(question, (), PromptSpec(1, 0, "text"))
    ids = renderer.render(prompt.messages)
    answer = renderer.answer_ids(question.answers[0])
    logits = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
    expected = -logits.log_softmax(-1)[range(len(answer)), list(answer)].sum().item()
    assert scorer.score(model, [plain]).loss == pytest.approx(expected, rel=1e-4)

    parts = [scorer.score(model, rows).loss for rows in (texts, choices)]
    assert scorer.score(model, [*texts, *choices]).loss == pytest.approx(sum(parts), rel=1e-4)
    lost = replace(plain, question=replace(question, image="lost.png"))
    assert scorer.score(model, [lost]).loss == pytest.approx(-math.log(MIN_PROBABILITY))
