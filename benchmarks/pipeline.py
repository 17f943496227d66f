"""The whole pipeline beside its stages alone, and beside a plain loop that takes a row at a time.

    python -m benchmarks.pipeline [--rows 300] [--repetitions 8]

Retrieval and vLLM on a CPU, which part its cores as `predict` does, answer rows of the demo world;
the loop is retrieval and transformers in float32, each on all cores. Every repetition has rows of
its own; the first is left out. Predictions that differ end the comparison. Prints one table in
Markdown: medians, and ratios above 1 where the pipeline is faster.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Annotated, Any

import typer

from mmrag_batch.bundle import open_bundle
from mmrag_batch.execute.local import run_stages
from mmrag_batch.factory import find_stages
from mmrag_batch.machine import cores
from mmrag_batch.records import Row
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from mmrag_batch.stages import Stage, open_stages
from mmrag_batch.table.rows import read_rows
from mmrag_batch.train.demo_world import write_world

FEW = 60
"""Rows of a repetition that the loop answers."""


def timed(work: Callable[..., object], *arguments: Any) -> float:
    """Seconds that a call takes."""
    started = perf_counter()
    work(*arguments)
    return perf_counter() - started


def answer_each(stages: Sequence[Stage], rows: list[Row]) -> None:
    """The plain loop."""
    for row in rows:
        stream: Iterable[Row] = [row]
        for stage in stages:
            stream = stage(stream)
        list(stream)


def answers(rows: list[Row]) -> list[str | None]:
    """What was predicted, where something was."""
    return [row.prediction.text if row.prediction else None for row in rows]


def line(name: str, ours: list[float], theirs: list[float]) -> str:
    """One row of the table, without the first repetition."""
    cells = []
    for values in (ours[1:], theirs[1:]):
        first, middle, third = (1000 * value for value in quantiles(values, n=4))
        cells.append(f"{middle:.1f} ({first:.1f} to {third:.1f})")
    return f"| {name} | {' | '.join(cells)} | {median(theirs[1:]) / median(ours[1:]):.2f} |"


def main(
    rows: Annotated[int, typer.Option(min=FEW, help="Of each repetition.")] = 300,
    repetitions: Annotated[int, typer.Option(min=4, help="The first is left out.")] = 8,
) -> None:
    """Compare a pipeline with its parts and with a loop."""
    whole, summed, slower, loop = [], [], [], []
    bundle = open_bundle(DEMO_BUNDLE)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        table = write_world(Path(folder), rows=2 * rows * repetitions, seed=9401)
        settings = PredictSettings(table, table.with_name("out.csv"), device="cpu", batch_size=1)
        ours, plain = (
            stack.enter_context(open_stages(find_stages(replace(settings, engine=engine), bundle)))
            for engine in ("vllm", "transformers")
        )
        import torch  # its threads follow from the environment that vLLM was given

        share = torch.get_num_threads()
        source, again = read_rows(table), read_rows(table)
        for _ in range(repetitions):
            mine, others = list(islice(source, rows)), list(islice(source, rows))
            few = list(islice(again, 2 * rows))[:FEW]
            written: list[Row] = []
            whole.append(timed(run_stages, mine, ours, written.append) / rows)
            parts = [timed(list, stage(others)) / rows for stage in ours]
            summed.append(sum(parts))
            slower.append(max(parts))
            torch.set_num_threads(cores())
            loop.append(timed(answer_each, plain, few) / FEW)
            torch.set_num_threads(share)
            written.sort(key=lambda row: row.number)
            if answers(written[:FEW]) != answers(few):
                sys.exit("The loop predicts other answers: no time is worth quoting.")
    typer.echo("| compared with | ms a row, ours | theirs | ratio |\n|---|---|---|---|")
    typer.echo(line("its stages, one after the other", whole, summed))
    typer.echo(line("the slower of them alone", whole, slower))
    typer.echo(line("a plain loop", whole, loop))
    typer.echo(f"\nLoad average: {os.getloadavg()[2]:.1f}.")


if __name__ == "__main__":
    typer.run(main)
