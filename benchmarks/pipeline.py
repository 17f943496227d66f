"""The whole pipeline beside its stages alone, and beside a plain loop that takes a row at a time.

    python -m benchmarks.pipeline [--rows 300] [--repetitions 8]

Retrieval and vLLM on a CPU, which part its cores as `predict` does, answer rows of the demo world;
the loop is retrieval and transformers in float32, each on all cores. Every repetition has rows of
its own; the first is left out. Predictions that differ end the comparison. Prints one table in
Markdown: medians, and ratios above 1 where the pipeline is faster.
"""

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import typer

from benchmarks.ratios import REPETITIONS, Ratio, interleave, per, shown
from mmrag_batch.bundle import open_bundle
from mmrag_batch.execute.local import run_stages
from mmrag_batch.factory import find_stages
from mmrag_batch.machine import cores
from mmrag_batch.records import Row
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from mmrag_batch.stages import Stage, open_stages
from mmrag_batch.table.rows import read_rows
from mmrag_batch.train.demo_world import write_world

ROWS, SOME, FEW = 300, 100, 30
"""Of a repetition, likewise for docs/performance.md, and those that the loop answers."""


def answer_each(stages: Sequence[Stage], rows: list[Row]) -> None:
    """The plain loop."""
    for row in rows:
        stream: Iterable[Row] = [row]
        for stage in stages:
            stream = stage(stream)
        list(stream)


def answers(rows: Iterable[Row]) -> list[str | None]:
    """What was predicted, in the order of the table."""
    ordered = sorted(rows, key=lambda row: row.number)
    return [row.prediction.text if row.prediction else None for row in ordered]


def are_alike(some: list[str | None], others: list[str | None]) -> bool:
    """Whether one begins as the other does: the loop answers the first rows alone, and the stages
    answer others, so that nothing of theirs is in a cache."""
    return all(one == other for one, other in zip(some, others))


def measure(rows: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds a row: of the whole pipeline, of its stages one after the other, of the slower of
    them, and of the loop."""
    bundle, slower = open_bundle(DEMO_BUNDLE), list[float]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        table = write_world(Path(folder), rows=2 * rows * repetitions, seed=9401)
        settings = PredictSettings(table, table.with_name("out.csv"), device="cpu", batch_size=1)
        ours, plain = (
            stack.enter_context(open_stages(find_stages(replace(settings, engine=engine), bundle)))
            for engine in ("vllm", "transformers")
        )
        import torch  # its threads follow from the environment that vLLM was given

        share = torch.get_num_threads()

        def taken(start: int, count: int = rows) -> list[Row]:
            return list(islice(read_rows(table), start, start + count))

        def whole(repetition: int) -> list[str | None]:
            written: list[Row] = []
            run_stages(taken(2 * rows * repetition), ours, written.append)
            return answers(written)

        def stages(repetition: int) -> list[str | None]:
            others, seconds = taken(2 * rows * repetition + rows), list[float]()
            for stage in ours:
                started = perf_counter()
                others = list(stage(others))
                seconds.append(perf_counter() - started)
            slower.append(max(seconds) / rows)
            return []

        def loop(repetition: int) -> list[str | None]:
            torch.set_num_threads(cores())
            few = taken(2 * rows * repetition, FEW)
            answer_each(plain, few)
            torch.set_num_threads(share)
            return answers(few)

        sides = {"whole": whole, "stages": stages, "loop": loop}
        seconds = interleave(sides, repetitions, agree=are_alike)
    counts = {"whole": rows, "stages": rows, "loop": FEW}
    taken_by = {side: [one / counts[side] for one in values] for side, values in seconds.items()}
    return taken_by | {"slower": slower[1:]}


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Of the time of its stages, and against the loop."""
    seconds = measure(SOME, repetitions)
    yield Ratio("5a", per(seconds["whole"], seconds["stages"]))
    yield Ratio("7", per(seconds["loop"], seconds["whole"]))


def main(
    rows: Annotated[int, typer.Option(min=FEW, help="Of each repetition.")] = ROWS,
    repetitions: Annotated[int, typer.Option(min=4, help="The first is left out.")] = REPETITIONS,
) -> None:
    """Compare a pipeline with its parts and with a loop."""
    seconds = measure(rows, repetitions)
    typer.echo("| compared with | ms a row, ours | theirs | ratio |\n|---|---|---|---|")
    for side, name in (
        ("stages", "its stages, one after the other"),
        ("slower", "the slower of them alone"),
        ("loop", "a plain loop"),
    ):
        ours, theirs = ([1000 * one for one in seconds[which]] for which in ("whole", side))
        ratio = median(per(theirs, ours))
        typer.echo(f"| {name} | {shown(ours, 1)} | {shown(theirs, 1)} | {ratio:.2f} |")
    typer.echo(f"\nLoad average: {os.getloadavg()[2]:.1f}.")


if __name__ == "__main__":
    typer.run(main)
