"""transformers' Trainer with our loss, our order of examples and the scores of `predict`."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback

from mmrag_batch.families.family import open_family
from mmrag_batch.progress import Progress
from mmrag_batch.records import Row
from mmrag_batch.train.examples import needed_logits, weighted_loss
from mmrag_batch.train.held_out import Score
from mmrag_batch.train.run import Run

log = logging.getLogger(__name__)

SHOWN = ("loss", "learning_rate", "grad_norm", "eval_accuracy", "eval_loss", "eval_rows")


class AnswerTrainer(Trainer):
    """Learns answers; where `eval_dataset` is given, as rows, `score` says how good it is at them.

    The best checkpoint is the result, or the `base` as it was where none is better. On several
    processes each scores its share of the rows.
    """

    def __init__(
        self,
        *,
        sampler: Sampler[int],
        score: Callable[[Any, Sequence[Row]], Score],
        run: Run,
        base: Path,
        **settings: Any,
    ) -> None:
        self._report = _Report(run)
        super().__init__(callbacks=[self._report], **settings)
        self.remove_callback(PrinterCallback)  # the run reports
        self.model_accepts_loss_kwargs = True  # `compute_loss` takes what a step's weights sum to
        self._sampler = sampler
        self._score = score
        self._run = run
        self._base = base

    def train(self, *args: Any, **settings: Any) -> Any:
        """As the trainer's."""
        try:
            return super().train(*args, **settings)
        finally:
            self._report.close()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # noqa: ARG002
        return self._sampler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load all weights of a checkpoint.

        A whole model is saved under the names of published checkpoints. transformers would look for
        those of its modules, find none, and go on with the base.
        """
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = open_family(Path(resume_from_checkpoint)).load(dtype=torch.float32)
        module: Any = self.model if model is None else model
        module.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        assert self.state.best_metric is not None  # there is one checkpoint at least
        assert self.state.best_model_checkpoint is not None
        losses = (
            entry["eval_loss"]
            for entry in self.state.log_history
            if entry["step"] == 0 and "eval_loss" in entry
        )
        untrained_loss = next(losses, math.inf)
        if untrained_loss <= self.state.best_metric:
            self.state.best_global_step = 0
            self._restore_base(untrained_loss)
        elif isinstance(self.model, PeftModel):
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        self._run.report(best_step=self.state.best_global_step or 0)

    def _restore_base(self, loss: float) -> None:
        """Take back all that was learnt. An adapter adds B A to a weight, and starts with B = 0."""
        log.warning(
            "No checkpoint is better at the held-out rows than the base, whose loss is %.4f. The "
            "result is the base as it was; an adapter that changes nothing is not exported. Train "
            "on more rows or with a lower `learning_rate`.",
            loss,
        )
        if not isinstance(self.model, PeftModel):
            self._load_from_checkpoint(str(self._base))
            return
        for name, parameter in self.model.named_parameters():
            if ".lora_B." in name:
                parameter.data.zero_()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """What the weights of all tokens of a step sum to, over its batches and processes, divided
        by the number of processes, whose gradients are averaged. So a step's loss is the mean over
        its tokens, however they are shared out."""
        if not batch_samples:
            return None
        weights = [batch["loss_weights"][:, 1:].sum() for batch in batch_samples]
        total = self.accelerator.reduce(torch.stack(weights).sum().to(device), "sum")
        return total / self.accelerator.num_processes

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The weighted loss of `examples.Collator`, as a part of a step's mean."""
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        logit_count = needed_logits(weights)
        outputs = model(**inputs, use_cache=False, logits_to_keep=logit_count)
        loss = weighted_loss(
            outputs.logits,
            labels[:, -logit_count:],
            weights[:, -logit_count:],
            num_items_in_batch,
        )
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The accuracy on the held-out rows, and the mean log loss of their answers."""
        rows: Any = self.eval_dataset
        shard = rows[self.args.process_index :: self.args.world_size]
        score = self._score(self.accelerator.unwrap_model(self.model), shard)
        sums = torch.tensor([score.rows, score.correct, score.loss], dtype=torch.float32)
        sums = sums.to(self.accelerator.device)
        total, correct, loss = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {
            "eval_accuracy": correct / total,
            "eval_loss": loss / total,
            "eval_rows": int(total),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


class _Report(TrainerCallback):
    """Passes the trainer's figures on to the run's folder, and says how far it is."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._open = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            progress = Progress("Training", state.max_steps, "steps", done=state.global_step)
            self._progress = self._open.enter_context(progress)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self._progress.advance()

    def close(self) -> None:
        """Stop telling."""
        self._open.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        metrics = {key: logs[key] for key in SHOWN if key in logs}
        if metrics:
            self._run.report(step=state.global_step, **metrics)
