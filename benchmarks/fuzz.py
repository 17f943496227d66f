"""Whether what is read keeps its promise, whatever stands in a table or an image.

    python -m benchmarks.fuzz [--tables 10000] [--images 3000] [--jobs 2] [--seed 0]

Random tables of every format and random images of every kind, most images and many tables damaged
(tests/fuzz makes them). `validate` looks at each; one in 20 tables and every image go through
`predict --engine scripted`. Prints tables in Markdown, and what led to each thing that was wrong.
"""

import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from traceback import format_exception
from typing import Annotated, NamedTuple, TypeVar

import typer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.faults.machine import MEMORY
from tests.fuzz.trials import ImageOutcome, TableOutcome, Trials, WrongError

T = TypeVar("T", TableOutcome, ImageOutcome)
BATCH = 50
"""What a process is given at once; so many images are in one table of `predict`."""
PREDICTED = 20
"""One of so many tables goes through `predict`."""


class Batch(NamedTuple):
    """What became of some tables and images, what was wrong, and the most memory (KiB) that the
    process had by then."""

    tables: list[TableOutcome]
    images: list[ImageOutcome]
    wrong: list[str]
    peak: int


def try_tables(seed: int, count: int) -> Batch:
    """Make and read tables."""

    def one(trials: Trials, number: int) -> list[TableOutcome]:
        return [trials.try_table(number, predicts=number % PREDICTED == 0)]

    tables, wrong = _try(one, range(seed, seed + count))
    return Batch(tables, [], wrong, _peak())


def try_images(seed: int, count: int) -> Batch:
    """Make and show images."""
    images, wrong = _try(lambda trials, number: trials.try_images(number, count), [seed])
    return Batch([], images, wrong, _peak())


def _try(one: Callable[[Trials, int], list[T]], seeds: Sequence[int]) -> tuple[list[T], list[str]]:
    outcomes: list[T] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        trials = Trials(Path(folder))
        for seed in seeds:
            try:
                outcomes += one(trials, seed)
            except WrongError as error:
                wrong.append("".join(format_exception(error)))
    return outcomes, wrong


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def tell_tables(outcomes: Sequence[TableOutcome]) -> Iterator[str]:
    """What became of the tables of each format, and of their rows in `predict`."""
    yield "| tables | made | read | refused | rows | answered, of those asked | longest, s |"
    yield "|---|---|---|---|---|---|---|"
    for kind in [*sorted({one.kind for one in outcomes}), ""]:
        made = [one for one in outcomes if kind in ("", one.kind)]
        read = sum(not one.code for one in made)
        statuses = sum((one.statuses for one in made), Counter[str]())
        answered = statuses.total() - statuses["error"]
        longest = max((one.seconds for one in made), default=0.0)
        yield (
            f"| {kind or 'all'} | {len(made):,} | {read:,} | {len(made) - read:,} | "
            f"{sum(one.rows for one in made):,} | {answered:,} of {statuses.total():,} | "
            f"{longest:.2f} |"
        )


def tell_images(outcomes: Sequence[ImageOutcome]) -> Iterator[str]:
    """What became of the images of each kind."""
    yield "| images | made | shown | not shown | longest, s |\n|---|---|---|---|---|"
    for kind in [*sorted({one.kind for one in outcomes}), ""]:
        made = [one for one in outcomes if kind in ("", one.kind)]
        codes = Counter(one.code for one in made)
        shown = codes.pop("", 0)
        reasons = ", ".join(f"`{code}` {count:,}" for code, count in codes.most_common())
        longest = max((one.seconds for one in made), default=0.0)
        yield f"| {kind or 'all'} | {len(made):,} | {shown:,} | {reasons} | {longest:.2f} |"


def main(
    tables: Annotated[int, typer.Option(help="Random tables.")] = 10_000,
    images: Annotated[int, typer.Option(help="Random images.")] = 3_000,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Other ones for another number.")] = 0,
) -> None:
    """Make tables and images, read them, and print what came of it."""
    begun, done = time.monotonic(), list[Batch]()
    with ProcessPoolExecutor(jobs) as pool:
        for what, work, count in (("tables", try_tables, tables), ("images", try_images, images)):
            starts = range(0, count, BATCH)
            counts = [min(BATCH, count - start) for start in starts]
            batches = pool.map(work, [seed + start for start in starts], counts)
            done += tqdm(batches, total=len(counts), desc=what, unit="batch")
    wrong = [text for batch in done for text in batch.wrong]
    typer.echo("\n".join(tell_tables([one for batch in done for one in batch.tables])) + "\n")
    typer.echo("\n".join(tell_images([one for batch in done for one in batch.images])) + "\n")
    peak = max((batch.peak for batch in done), default=0) / 1024
    minutes = (time.monotonic() - begun) / 60
    typer.echo(f"{len(wrong)} went wrong; {peak:,.0f} MiB at most in a process; {minutes:.1f} min.")
    if wrong:
        typer.echo("\n\n".join(["", *wrong]))
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
