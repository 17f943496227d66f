"""Peak memory of a long run beside that of a short one: it must not grow with the table.

    python -m benchmarks.memory [--rows 20000] [--few 4000]

Draws one demo world and sends it through `mmrag-batch predict --engine scripted`, in whole and cut
to its first rows: everything but the generator is real, and one row takes 100 times as long as the
others. A short run is long enough for the caches to be full. Then rows that each show a photo of 12
megapixels, more than the engine takes at once and faster than it answers. Prints
tables in Markdown.
"""

import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.images import write_photos
from benchmarks.ratios import Ratio, Usage, run_python
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train.demo_world import write_world

ROWS, FEW, SOME = 20_000, 4_000, 9_000
DELAY, LONG_DELAY = 0.0005, 0.3
"""Seconds a row, without and with a photo."""
PHOTOS = 64


def measure(table: Path, rows: int, delay: float = DELAY) -> Usage:
    """A run over the first `rows` of a table."""
    script = json.dumps({"delay": delay, "slow": {"500": 100 * delay}})
    return run_python(
        *("-m", "mmrag_batch", "predict", table, table.with_name("out.csv"), "--limit", rows),
        *("--engine", "scripted", "--device", "cpu", "--fresh", "--quiet"),
        *("--bundle", DEMO_BUNDLE),
        env=os.environ | {"SCRIPTED_ENGINE": script},
    )


def compare(rows: int, few: int) -> tuple[Usage, Usage]:
    """A short run and a long one."""
    with tempfile.TemporaryDirectory() as folder:
        table = write_world(Path(folder), rows=rows, seed=9101)
        return measure(table, few), measure(table, rows)


def held() -> float:
    """GiB that rows with photos take beyond a run with one of them."""
    with tempfile.TemporaryDirectory() as folder:
        table = write_photos(Path(folder), PHOTOS)
        one, all_of_them = (measure(table, rows, LONG_DELAY) for rows in (1, PHOTOS))
    return (all_of_them.peak - one.peak) / 1024


def ratios(keys: Collection[str], _repetitions: int) -> Iterator[Ratio]:
    """Peaks, of one run each: they hardly differ from run to run."""
    if "8a" in keys:
        short, long = compare(SOME, FEW)
        yield Ratio("8a", [long.peak / short.peak])
    if "8b" in keys:
        yield Ratio("8b", [held()])


def main(
    rows: Annotated[int, typer.Option(help="Of the long run.")] = ROWS,
    few: Annotated[int, typer.Option(help="Of the short run.")] = FEW,
) -> None:
    """Compare the peak memory of a long and a short run."""
    short, long = compare(rows, few)
    typer.echo("| rows | peak memory, MiB | seconds |\n|---|---|---|")
    for count, run in ((few, short), (rows, long)):
        typer.echo(f"| {count:,} | {run.peak:.1f} | {run.seconds:.1f} |")
    typer.echo(f"\nratio: {long.peak / short.peak:.3f}")
    typer.echo(f"{PHOTOS} rows with a photo each: {held():.2f} GiB more than one row")


if __name__ == "__main__":
    typer.run(main)
