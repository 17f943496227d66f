"""Rows that a run does not learn from, answered and scored as `predict` would."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engines.transformers import TransformersEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Question, Row
from mmrag_batch.report.free_form import is_exact
from mmrag_batch.stages import ImageStore
from mmrag_batch.train.text_loss import TextLoss

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
        text_loss = TextLoss(
            self._generator_dir, model, self._images, self._spec, batch_size=self._batch_size
        )
        written = [row for row in answered if row.prediction and not _question(row).choices]
        losses = [loss for loss in text_loss(written) if loss is not None]
        model.train(was_training)
        losses += [
            -math.log(max(MIN_PROBABILITY, _probability(row)))
            for row in answered
            if row.prediction is None or _question(row).choices
        ]
        return Score(
            rows=len(answered), correct=sum(map(_is_right, answered)), loss=math.fsum(losses)
        )


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
