"""What a step of a training preset takes on a generator of the 11B's shape.

    python -m benchmarks.gpu.training DIR [--preset llama_11b_80gb] [--steps 4]

DIR is what `benchmarks.gpu.world` wrote. All is as `train generator` does it with the preset, but
for the paths and the number of steps, and that nothing is held out or saved.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import typer
from transformers import TrainerCallback

from mmrag_batch.declare import load_config
from mmrag_batch.train.generator import build_trainer
from mmrag_batch.train.run import Run
from mmrag_batch.train.settings import GeneratorConfig

CONFIGS = Path(__file__).parents[2] / "train" / "configs"


class Clock(TrainerCallback):
    """When each step ended, and the tokens of each batch."""

    def __init__(self) -> None:
        self.ends = [perf_counter()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(perf_counter())


def main(directory: Path, preset: str = "llama_11b_80gb", steps: int = 4) -> None:
    """Train so many steps."""
    config = load_config(CONFIGS / f"{preset}.yaml", GeneratorConfig)
    with tempfile.TemporaryDirectory() as name:
        config = replace(
            config,
            base=directory / "generator",
            table=directory / "questions.csv",
            out=Path(name),
            retriever=None,
            steps=steps,
            held_out=0,
            save_every=10 * steps,
        )
        started = perf_counter()
        run = Run(config.out, config, seed=config.seed)
        trainer = build_trainer(config, Path(name) / "checkpoints", run)
        collate = trainer.data_collator

        loaded, clock = perf_counter() - started, Clock()
        shape = collate([trainer.train_dataset[0]])["input_ids"].shape  # type: ignore[index]
        trainer.add_callback(clock)
        clock.ends = [perf_counter()]
        trainer.train()
        seconds = [end - begin for begin, end in zip(clock.ends, clock.ends[1:])]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    reserved = torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0
    typer.echo(
        f"TRAINING {preset}: {config.batch_size} x {config.accumulate} rows of {shape[1]} tokens, "
        f"{config.max_images} image(s): steps of {', '.join(f'{s:.2f}' for s in seconds)} s; "
        f"{peak:.1f} GB at most, {reserved:.1f} reserved; loaded in {loaded:.0f} s; "
        f"losses {', '.join(f'{loss:.2f}' for loss in losses)}"
    )


if __name__ == "__main__":
    typer.run(main)
