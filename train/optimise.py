"""The loop that the small models share: steps over random batches, with one learning rate cycle."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmrag_batch.progress import Progress

REPORT_EVERY = 100
"""Steps between two reports of the losses."""


def optimise(
    parameters: Iterable[nn.Parameter],
    losses_of_batch: Callable[[], dict[str, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    report: Callable[..., Any],
    done: int = 0,
) -> None:
    """Take `steps` steps of AdamW on the sum of what `losses_of_batch` gives, by name; reports
    count the steps that were `done` before."""
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.05)
    # torch divides by the steps of the rise but one, which must not be none.
    rise = min(max(0.05, 1.5 / steps), 0.95)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=rise
    )
    with Progress("Training", steps, "steps") as progress:
        for step in progress.each(range(1, steps + 1)):
            losses = losses_of_batch()
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            if step % REPORT_EVERY == 0 or step == steps:
                report(step=done + step, **{name: loss.item() for name, loss in losses.items()})
