"""The loop that fits towers to an embedded table: epochs, the best of them, early stop, resume."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmrag_batch.progress import Progress
from mmrag_batch.train.data import EmbeddedTable
from mmrag_batch.train.losses import candidate_loss, distillation_loss
from mmrag_batch.train.negatives import mine_negatives
from mmrag_batch.train.ranking import rank, vectors
from mmrag_batch.train.towers import Towers

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How towers are fitted; see `RetrieverConfig`. `soft`: documents help more or less."""

    epochs: int
    batch_size: int
    learning_rate: float
    hard_negatives: int
    patience: int
    soft: bool
    seed: int


class Fit:
    """Fits towers, epoch by epoch, and keeps what ranks the held-out questions best.

    What is random in an epoch depends on seed and epoch alone, so a fit that goes on from its
    checkpoint ends as it would have.
    """

    def __init__(
        self,
        towers: Towers,
        train_table: EmbeddedTable,
        held_out_table: EmbeddedTable,
        settings: FitSettings,
        checkpoint: Path,
    ) -> None:
        self._towers, self._train_table, self._held_out_table = towers, train_table, held_out_table
        self._settings = settings
        self._checkpoint = checkpoint
        rate = settings.learning_rate
        self._batches = len(train_table.questions) // settings.batch_size
        steps = settings.epochs * self._batches
        self._optimizer = torch.optim.AdamW(towers.parameters(), lr=rate, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, rate, total_steps=steps, pct_start=0.1
        )
        self._epoch = 0
        self._stale_epochs = 0
        """Epochs since the best one."""
        self._best_mrr = 0.0
        self._best_weights: Weights = {}
        if checkpoint.is_file():
            self._load()

    def run(self, report: Callable[..., None]) -> None:
        """Fit to the end; the towers are left with the best weights, in eval mode. `report` takes
        the figures of each epoch, the untrained towers being epoch 0."""
        if not self._best_weights:
            sizes = len(self._train_table.questions), len(self._held_out_table.questions)
            self._evaluate(report, questions=sizes[0], held_out=sizes[1])
        epochs = self._settings.epochs
        done = self._epoch * self._batches
        with Progress("Training", epochs * self._batches, "batches", done=done) as progress:
            while self._epoch < epochs and self._stale_epochs < self._settings.patience:
                self._epoch += 1
                self._evaluate(report, loss=self.train_epoch(progress))
                self._save()
        self._towers.load_state_dict(self._best_weights)
        self._towers.eval()

    def train_epoch(self, progress: Progress | None = None) -> float:
        """One pass over the questions in a new order; returns the mean loss. What fills no batch
        comes up in another epoch."""
        settings = self._settings
        generator = torch.Generator().manual_seed(settings.seed * 10_007 + self._epoch)
        negatives = None
        if settings.hard_negatives:
            negatives = mine_negatives(
                self._towers.eval(), self._train_table, settings.hard_negatives, generator
            )
        self._towers.train()
        order = torch.randperm(len(self._train_table.questions), generator=generator)
        full = len(order) // settings.batch_size * settings.batch_size
        losses = []
        for indices in order[:full].view(-1, settings.batch_size):
            loss = self._loss(indices, None if negatives is None else negatives[indices])
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            losses.append(loss.item())
            if progress is not None:
                progress.advance()
        return sum(losses) / len(losses)

    def _loss(self, indices: Tensor, negatives: Tensor | None) -> Tensor:
        batch = self._train_table.take(indices)
        if negatives is not None:
            negative_indices = torch.unique(negatives[negatives >= 0])
            batch = batch.with_documents(self._train_table.documents[negative_indices])
        questions, documents = vectors(self._towers, batch)
        targets = batch.shares.nan_to_num(0) if self._settings.soft else batch.shares > 0
        loss = distillation_loss if self._settings.soft else candidate_loss
        return loss(
            questions, documents, batch.owner, targets, self._towers.temperature, batch.excluded
        )

    def _evaluate(self, report: Callable[..., None], **figures: float) -> None:
        """Rank the held-out questions; keep the weights if that is better than ever."""
        ranking = rank(self._towers.eval(), self._held_out_table)
        report(epoch=self._epoch, **figures, recall_at_1=ranking.recall_at_1, mrr=ranking.mrr)
        if not self._best_weights or ranking.mrr > self._best_mrr:
            self._best_mrr, self._stale_epochs = ranking.mrr, 0
            self._best_weights = deepcopy(self._towers.state_dict())
        else:
            self._stale_epochs += 1

    def _save(self) -> None:
        state = {
            "epoch": self._epoch,
            "stale": self._stale_epochs,
            "best": self._best_mrr,
            "kept": self._best_weights,
            "towers": self._towers.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        temporary = self._checkpoint.with_suffix(".partial")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)

    def _load(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self._epoch, self._stale_epochs = state["epoch"], state["stale"]
        self._best_mrr = state["best"]
        self._best_weights = state["kept"]
        self._towers.load_state_dict(state["towers"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        log.info("Going on after epoch %d of %s.", self._epoch, self._checkpoint)
