"""Rows that a run does not learn from, answered and scored as `predict` would."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from mmrag_batch.families.family import open_family
from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engines.transformers import TransformersEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Question, Row
from mmrag_batch.report.free_form import is_exact
from mmrag_batch.stages import ImageStore, in_batches
from mmrag_batch.train.examples import Collator, Examples, needed_logits, weighted_loss

MIN_PROBABILITY = 1e-6
"""The probability that is counted where a row has no answer, or none above it."""
MAX_NEW_TOKENS = 32
"""Longest answer in free form, as in `predict`, or that of the longest right one."""


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over rows: how many there are, how many right, and their log losses in nats."""

    rows: int
    correct: int
    loss: float


class Scorer:
    """Scores a model in memory by the code that `predict` runs: same prompts, same choices.

    An answer in free form is right where it matches exactly (`report/free_form.py`); its loss is
    that of the text of the label, end token included.
    """

    def __init__(
        self,
        generator_dir: Path,
        images: ImageStore,
        spec: PromptSpec,
        *,
        batch_size: int,
    ) -> None:
        self._generator_dir = generator_dir
        self._images = images
        self._batch_size = batch_size
        self._spec = spec

    def score(self, model: Any, rows: Sequence[Row]) -> Score:
        """Answer `rows`, which have evidence and a right answer. The model is left in its mode."""
        renderer = Renderer(self._generator_dir)
        engine = TransformersEngine(
            self._generator_dir,
            batch_size=self._batch_size,
            max_new_tokens=_longest(rows, renderer),
            model=model,
        )
        answerer = Answerer(renderer, engine, self._images, self._spec)
        was_training = model.training
        model.eval()
        # A stage fills in what it is given.
        fresh_rows = (replace(row, problems=[]) for row in rows)
        with Progress("Scoring", len(rows), "rows") as progress:
            answered = list(progress.each(answerer(fresh_rows)))
        written = [row for row in answered if row.prediction and not _question(row).choices]
        loss = self._text_loss(model, renderer, written)
        model.train(was_training)
        for row in answered:
            if row.prediction is None or _question(row).choices:
                loss -= math.log(max(MIN_PROBABILITY, _probability(row)))
        return Score(rows=len(answered), correct=sum(map(_is_right, answered)), loss=loss)

    @torch.inference_mode()
    def _text_loss(self, model: Any, renderer: Renderer, rows: Sequence[Row]) -> float:
        """The log losses of the right texts of rows without choices, summed."""
        examples = Examples(rows, renderer, self._images, self._spec, seed=0)
        pad_id = model.generation_config.pad_token_id
        collate = Collator(open_family(self._generator_dir), pad_id=pad_id, prompt_loss=0.0)
        losses = []
        indices = sorted(range(len(rows)), key=examples.image_count)
        for _, group in groupby(indices, key=examples.image_count):
            for batch in in_batches(group, self._batch_size):
                inputs = collate([examples[index] for index in batch])
                inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
                labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
                count = needed_logits(weights)
                logits = model(**inputs, use_cache=False, logits_to_keep=count).logits
                parts = logits, labels[:, -count:], weights[:, -count:]
                losses.append(weighted_loss(*parts, total=torch.tensor(1.0)).item())
        return math.fsum(losses)


def _longest(rows: Sequence[Row], renderer: Renderer) -> int:
    """The most tokens to write."""
    questions = map(_question, rows)
    texts = {text for question in questions for text in question.answers}
    return max([MAX_NEW_TOKENS, *(len(renderer.answer_ids(text)) for text in texts)])


def _is_right(row: Row) -> bool:
    """Whether the right choice was given, or a right text written."""
    question = _question(row)
    if row.prediction is None:
        return False
    if question.choices:
        return row.prediction.index == question.label
    return is_exact(row.prediction.text, question.answers)


def _probability(row: Row) -> float:
    """Of the right choice; 0 where there is no answer."""
    label = _question(row).label
    return row.prediction.probabilities[label] if row.prediction and label is not None else 0.0


def _question(row: Row) -> Question:
    assert row.question is not None  # labelled rows have one
    return row.question
