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
from mmrag_batch.records import Row
from mmrag_batch.stages import ImageStore

MIN_PROBABILITY = 1e-6
"""The probability that is counted where a row has no answer, or none above it."""


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over rows: how many there are, how many right, and their log losses in nats."""

    rows: int
    correct: int
    loss: float


class Scorer:
    """Scores a model in memory by the code that `predict` runs: same prompts, same choices."""

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
        """Answer `rows`, which have evidence and a label. The model is left in its mode."""
        engine = TransformersEngine(
            self._generator_dir, batch_size=self._batch_size, max_new_tokens=1, model=model
        )
        answerer = Answerer(
            Renderer(self._generator_dir),
            engine,
            self._images,
            self._spec,
        )
        was_training = model.training
        model.eval()
        # A stage fills in what it is given.
        fresh_rows = (replace(row, problems=[]) for row in rows)
        with Progress("Scoring", len(rows), "rows") as progress:
            outcomes = [_outcome(row) for row in progress.each(answerer(fresh_rows))]
        model.train(was_training)
        return Score(
            rows=len(outcomes),
            correct=sum(correct for correct, _ in outcomes),
            loss=-math.fsum(
                math.log(max(MIN_PROBABILITY, probability)) for _, probability in outcomes
            ),
        )


def _outcome(row: Row) -> tuple[bool, float]:
    """Whether the right choice was given, and its probability."""
    assert row.question is not None  # labelled rows have a question with a label
    assert row.question.label is not None
    if row.prediction is None:
        return False, 0.0
    label = row.question.label
    return row.prediction.index == label, row.prediction.probabilities[label]
