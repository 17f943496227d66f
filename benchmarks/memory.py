"""Peak memory of a long run beside that of a short one: it must not grow with the table.

    python -m benchmarks.memory [--rows 20000] [--few 1000]

Draws one demo world and sends it through `mmrag-batch predict --engine scripted`, in whole and cut
to its first rows: everything but the generator is real, and one row takes 100 times as long as the
others. Prints one table in Markdown.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train.demo_world import write_world

DELAY = 0.0005
"""Seconds a row."""


def measure(table: Path, rows: int) -> tuple[float, float]:
    """Peak resident memory (MiB) and seconds of a run over the first `rows` of a table."""
    out = table.with_name("out.csv")
    command = [sys.executable, "-m", "mmrag_batch", "predict", str(table), str(out)]
    command += ["--engine", "scripted", "--device", "cpu", "--limit", str(rows), "--fresh"]
    command += ["--quiet", "--bundle", str(DEMO_BUNDLE)]
    started = monotonic()
    script = json.dumps({"delay": DELAY, "slow": {"500": 100 * DELAY}})
    environment = os.environ | {"SCRIPTED_ENGINE": script}
    process = subprocess.Popen(command, env=environment)  # noqa: S603  # our own command
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss / 1024, monotonic() - started  # KiB on Linux


def main(
    rows: Annotated[int, typer.Option(help="Of the long run.")] = 20_000,
    few: Annotated[int, typer.Option(help="Of the short run.")] = 1_000,
) -> None:
    """Compare the peak memory of a long and a short run."""
    with tempfile.TemporaryDirectory() as folder:
        table = write_world(Path(folder), rows=rows, seed=9101)
        short, long = measure(table, few), measure(table, rows)
    typer.echo("| rows | peak memory, MiB | seconds |\n|---|---|---|")
    for count, (peak, seconds) in ((few, short), (rows, long)):
        typer.echo(f"| {count:,} | {peak:.1f} | {seconds:.1f} |")
    typer.echo(f"\nratio: {long[0] / short[0]:.3f}")


if __name__ == "__main__":
    typer.run(main)
