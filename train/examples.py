"""Rows of a table -> what a generator learns from: a prompt, its images, its answer.

Prompts are built by the same functions as in `predict`, on the same evidence.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mmrag_batch.errors import InputError, RowError
from mmrag_batch.families.family import Family
from mmrag_batch.generation.answerer import fit_prompt
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import Prompt, PromptSpec, answer_texts, build_prompt
from mmrag_batch.records import Evidence, Question, Row
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.truth import read_labelled_rows, right_answer

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
IGNORED = -100
"""The label of a token that carries no loss."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer as token ids; the answer includes the end token."""

    prompt: Sequence[int]
    answer: Sequence[int]
    images: Sequence["Image"]


def labelled_rows(table: Path, names: Names = AS_THEY_ARE) -> list[Row]:
    """The rows of a table whose right answer is known: one of their choices or, without choices, a
    text. The others are passed over, and the log says how many. Raises InputError for none."""
    questions = [row for row in read_labelled_rows(table, names=names) if row.question]
    rows = [row for row in questions if right_answer(_question(row)) is not None]
    if not rows:
        raise InputError(
            f"{table}: no row has a `label` among its `answer_choices`, or one and no choices."
        )
    if passed_over := len(questions) - len(rows):
        log.info("%s: %d rows without a right answer are passed over.", table, passed_over)
    return rows


def relevant_evidence(
    rows: Iterable[Row], images: ImageStore, *, top_k: int, seed: int
) -> list[Row]:
    """Rows with their relevant documents first, then others at random: perfect retrieval.

    Documents whose image cannot be read are left out, and rows whose own cannot, as in `predict`.
    """
    random = Random(seed)
    rows_with_evidence = []
    for row in rows:
        question = _question(row)
        if question.image is not None and not _is_readable(images, question.image):
            continue
        relevant = question.relevant or frozenset()
        documents = [
            d for d in question.documents if d.image is None or _is_readable(images, d.image)
        ]
        random.shuffle(documents)
        documents.sort(key=lambda document: document.id not in relevant)
        rows_with_evidence.append(
            replace(row, evidence=tuple(Evidence(d, 0.0) for d in documents[:top_k]))
        )
    return rows_with_evidence


def _is_readable(images: ImageStore, source: str) -> bool:
    try:
        images.digest(source)
    except RowError:
        return False
    return True


def fit_row(
    row: Row, renderer: Renderer, images: ImageStore, spec: PromptSpec
) -> tuple[tuple[Evidence, ...], Prompt]:
    """The evidence of a row that fits, and the prompt with it, as in `predict`. Raises RowError
    where not even the question fits."""
    shown: dict[str, Image] = {}
    while True:
        evidence, prompt, _ = fit_prompt(renderer, _question(row), row.evidence, spec, shown)
        if not renderer.has_image_tokens or shown.keys() >= set(prompt.images):
            return evidence, prompt
        shown |= {source: images.load(source) for source in prompt.images}


def fitting_rows(
    rows: Sequence[Row], renderer: Renderer, images: ImageStore, spec: PromptSpec
) -> list[Row]:
    """Rows with their evidence cut to what fits, as in `predict`; without those that never do."""
    fitted_rows = []
    with Progress("Fitting prompts", len(rows), "rows") as progress:
        for row in progress.each(rows):
            with suppress(RowError):
                evidence, _ = fit_row(row, renderer, images, spec)
                fitted_rows.append(replace(row, evidence=evidence))
    return fitted_rows


class Examples(Dataset[Example]):
    """One example a row.

    Its choices come in a new order in every epoch, so that no letter is favoured. The order depends
    on seed, epoch and row alone, so a run that is resumed sees what it would have seen.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        renderer: Renderer,
        images: ImageStore,
        spec: PromptSpec,
        *,
        seed: int,
    ) -> None:
        self._rows = rows
        self._renderer = renderer
        self._images = images
        self._spec = spec
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of the choices that epoch `epoch` has."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        question = _shuffled(_question(row), Random(f"{self._seed} {self._epoch} {index}"))
        prompt = self._prompt(question, row)
        answer = right_answer(question)
        if question.label is not None:
            answer = answer_texts(question, self._spec.scoring)[question.label]
        assert answer is not None  # labelled rows have one
        return Example(
            prompt=self._renderer.render(prompt.messages),
            answer=self._renderer.answer_ids(answer),
            images=[self._images.load(source) for source in prompt.images],
        )

    def image_count(self, index: int) -> int:
        """How many images the prompt of a row shows."""
        row = self._rows[index]
        return len(self._prompt(_question(row), row).images)

    def _prompt(self, question: Question, row: Row) -> Prompt:
        return build_prompt(question, row.evidence, self._spec)


class SameImageCount(Sampler[int]):
    """A random order of the examples in which the rows of each batch show equally many images.

    See `families/mllama/inputs.py` for why. What does not fill a batch waits for the next epoch.
    Epochs are those that the trainer sets, here and in the examples.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self._examples = examples
        self._groups: dict[int, list[int]] = {}
        for index in range(len(examples)):
            self._groups.setdefault(examples.image_count(index), []).append(index)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order that epoch `epoch` has."""
        self._epoch = epoch
        self._examples.set_epoch(epoch)

    def __len__(self) -> int:
        size = self._batch_size
        return sum(len(group) // size * size for group in self._groups.values())

    def __iter__(self) -> Iterator[int]:
        size, random = self._batch_size, Random(f"{self._seed} {self._epoch}")
        batches = []
        for members in self._groups.values():
            group = random.sample(members, len(members))
            batches += [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
        random.shuffle(batches)
        return (index for batch in batches for index in batch)


class Collator:
    """Examples of equally many images -> model inputs, labels and the weight of each token's loss.

    Adds `labels` (B, L) int64 and `loss_weights` (B, L) float32: 1 on the answer, `prompt_loss` on
    the prompt, 0 on padding, on image tokens and on the first token.
    """

    def __init__(
        self,
        family: Family,
        *,
        pad_id: int,
        prompt_loss: float,
    ) -> None:
        self._family = family
        self._pad_id = pad_id
        self._prompt_loss = prompt_loss

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        inputs = self._family.collate(
            [[*example.prompt, *example.answer] for example in examples],
            [example.images for example in examples],
            pad_id=self._pad_id,
        )
        ids, attention_mask = inputs["input_ids"], inputs["attention_mask"].bool()
        is_ignored = ~attention_mask | (ids == self._family.image_token_id)
        weights = ~is_ignored * self._prompt_loss
        for row, example in enumerate(examples):
            # Rows are padded on the left. What stands first follows nothing: not even padding.
            weights[row, -len(example.answer) :] = 1.0
            weights[row, int(attention_mask[row].int().argmax())] = 0.0
        labels = ids.masked_fill(is_ignored, IGNORED)
        return {**inputs, "labels": labels, "loss_weights": weights}


def weighted_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, total: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the next token, by weight. logits (B, L, V); labels and weights (B, L).

    Averaged over the batch, or over all that weighs `total` and of which this is a part.
    """
    token_weights = weights[:, 1:]
    losses = token_losses(logits, labels) * token_weights
    return losses.sum() / (token_weights.sum() if total is None else total)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each next token. logits (B, L, V), labels (B, L) -> (B, L - 1)."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view(len(labels), -1)


def needed_logits(weights: Tensor) -> int:
    """How many of the last logits carry loss, given the weights (B, L) of their tokens.

    Rows are padded on the left, so answers end together: a few logits of 128,256 numbers each
    instead of thousands.
    """
    first = int((weights > 0).any(dim=0).int().argmax())
    return weights.shape[1] - max(first - 1, 0)


def _shuffled(question: Question, random: Random) -> Question:
    if question.label is None:  # it has no choices
        return question
    order = random.sample(range(len(question.choices)), len(question.choices))
    choices = tuple(question.choices[index] for index in order)
    return replace(question, choices=choices, label=order.index(question.label))


def _question(row: Row) -> Question:
    assert row.question is not None  # labelled rows have one
    return row.question
