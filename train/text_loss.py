"""How unlikely the right texts of rows without choices are to a model, as `predict` asks them."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from mmrag_batch.errors import RowError
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Row
from mmrag_batch.stages import ImageStore, in_batches
from mmrag_batch.train.examples import (
    Collator,
    Example,
    Examples,
    fit_row,
    needed_logits,
    token_losses,
)


class TextLoss:
    """The log loss, in nats, of the right text of each row: of all of its tokens and of the end."""

    def __init__(
        self,
        generator_dir: Path,
        model: Any,
        images: ImageStore,
        spec: PromptSpec,
        *,
        batch_size: int,
    ) -> None:
        self._model = model
        self._renderer = Renderer(generator_dir)
        self._images = images
        self._spec = spec
        self._batch_size = batch_size
        pad_id = model.generation_config.pad_token_id
        self._collate = Collator(open_family(generator_dir), pad_id=pad_id, prompt_loss=0.0)

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """In the order of the rows; None for one whose evidence cannot be shown: an image that
        cannot be loaded, or too long a prompt."""
        losses: list[float | None] = [None] * len(rows)
        image_counts = {index: self._image_count(row) for index, row in enumerate(rows)}
        counts = {index: count for index, count in image_counts.items() if count is not None}
        order = sorted(counts, key=counts.__getitem__)
        for _, group in groupby(order, key=counts.__getitem__):
            for batch in in_batches(group, self._batch_size):
                examples = {index: self._example(rows[index]) for index in batch}
                shown = {index: example for index, example in examples.items() if example}
                if shown:
                    for index, loss in zip(shown, self._losses([*shown.values()]), strict=True):
                        losses[index] = loss
        return losses

    def _image_count(self, row: Row) -> int | None:
        """How many images its prompt shows; None where it is too long for all of its evidence."""
        try:
            evidence, prompt = fit_row(row, self._renderer, self._images, self._spec)
        except RowError:
            return None
        return len(prompt.images) if evidence == row.evidence else None

    def _example(self, row: Row) -> Example | None:
        try:
            return Examples([row], self._renderer, self._images, self._spec, seed=0)[0]
        except RowError:
            return None

    @torch.inference_mode()
    def _losses(self, batch: Sequence[Example]) -> list[float]:
        inputs = self._collate(batch)
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        count = needed_logits(weights)
        logits = self._model(**inputs, use_cache=False, logits_to_keep=count).logits
        losses = token_losses(logits, labels[:, -count:]) * weights[:, 1 - count :]
        found: list[float] = losses.sum(dim=1).tolist()
        return found
