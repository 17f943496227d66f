"""One vLLM engine beside several on the cores of one machine.

    python -m benchmarks.several_engines [--engines 2] [--rows 256] [--repetitions 4]

They get the same questions of the demo world, each repetition others, whose images nothing has in a
cache; the first is left out. Prints one table in Markdown.
"""

import os
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import typer

from benchmarks.engine import LIMITS, Question, ask, questions_of, start
from mmrag_batch.generation.engines.vllm_process import VllmProcess, prepare_environment
from mmrag_batch.generation.supervisor import Supervisor


def seconds_of(engines: int, threads: int, parts: list[list[Question]]) -> list[float]:
    """How long each part takes `engines` of so many threads each."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the processes as they start
    starts = [partial(start, VllmProcess)] * engines
    supervisor = Supervisor(*starts, window=2 * LIMITS.rows * engines)
    seconds = []
    for part in parts:
        began = perf_counter()
        assert all(ask(supervisor, part))
        seconds.append(perf_counter() - began)
    supervisor.close()
    return seconds


def main(
    engines: Annotated[int, typer.Option(min=2)] = 2,
    rows: Annotated[int, typer.Option()] = 256,
    repetitions: Annotated[int, typer.Option(min=2, help="The first is left out.")] = 4,
) -> None:
    """Compare them."""
    prepare_environment(1)
    with tempfile.TemporaryDirectory() as folder:
        questions = iter(questions_of(Path(folder), rows * repetitions))
        parts = [list(islice(questions, rows)) for _ in range(repetitions)]
    typer.echo(f"| engines | threads of each | {rows} questions, s | from | to |")
    typer.echo("|---|---|---|---|---|")
    for count, threads in ((1, 1), (1, engines), (engines, 1)):
        _, *seconds = seconds_of(count, threads, parts)
        spread = f"{median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f}"
        typer.echo(f"| {count} | {threads} | {spread} |")


if __name__ == "__main__":
    typer.run(main)
