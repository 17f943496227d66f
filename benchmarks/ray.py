"""What it costs to run on Ray: two workers of one processor each, against two plain processes that
each have half of the rows, on questions of the demo world with the demo bundle. Linux.

    python -m benchmarks.ray [--rows 2000] [--repeat 3]

Prints a table in Markdown: rows a second between a fifth and nine tenths of all answers, when all
models are loaded; the seconds to the first answer, which are their loading; and the ratio of the
medians.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Annotated, NamedTuple

import typer

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
BETWEEN = 0.2, 0.9
"""Shares of the answers between which rows a second are counted."""
RECORDING = """
import json, sys, time
from mmrag_batch.cli.app import app
from mmrag_batch.run.work import Work

times, keep = [], Work.keep

def keep_and_note(self, row):
    keep(self, row)
    times.append(time.monotonic())

Work.keep = keep_and_note
app(sys.argv[2:], standalone_mode=False)
open(sys.argv[1], "w").write(json.dumps(times))
"""
"""The command, which notes when it keeps an answer: on one clock for all processes."""


class Measured(NamedTuple):
    """Rows a second, and seconds to the first answer."""

    rate: float
    loading: float


def main(
    rows: Annotated[int, typer.Option(min=100)] = 2000,
    repeat: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Time both in turn and print the table."""
    from mmrag_batch.train.demo_world import write_world

    os.environ["OMP_NUM_THREADS"] = "1"
    with TemporaryDirectory() as folder, two_nodes() as address:
        table = write_world(Path(folder), rows=rows, seed=1)
        plain: list[Measured] = []
        on_ray: list[Measured] = []
        for number in range(repeat):
            output = Path(folder) / f"plain{number}.csv"
            plain.append(measure([[table, output, "--shard", f"{one}/2"] for one in (0, 1)]))
            on_ray.append(measure([[table, Path(folder) / f"ray{number}.csv", "--ray", address]]))
    typer.echo("| | rows/s | median | loading, s |\n|---|---|---|---|")
    for name, runs in {"two processes": plain, "two workers on Ray": on_ray}.items():
        rates = ", ".join(f"{one.rate:.1f}" for one in runs)
        middle, loading = (statistics.median(column) for column in zip(*runs))
        typer.echo(f"| {name} | {rates} | {middle:.1f} | {loading:.1f} |")
    ratio = statistics.median(one.rate for one in on_ray) / statistics.median(
        one.rate for one in plain
    )
    typer.echo(f"\nRay answers {ratio:.3f} times as many rows a second.")


@contextmanager
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes on this machine, with a processor each."""
    # Ray's workers give way to other work on a machine, unless they are told to be as others.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    cluster.add_node(**NODE)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def measure(commands: Sequence[Sequence[object]]) -> Measured:
    """Run `predict` with these words, all at once."""
    with TemporaryDirectory() as folder:
        began, logs = monotonic(), [Path(folder) / str(at) for at in range(len(commands))]
        more = ["--device", "cpu", "--engine", "transformers", "--quiet"]
        running = [
            subprocess.Popen(  # noqa: S603  # words of our own
                [sys.executable, "-c", RECORDING, log, "predict", *map(str, words), *more]
            )
            for log, words in zip(logs, commands)
        ]
        assert [one.wait() for one in running] == [0] * len(running)
        times = sorted(time for log in logs for time in json.loads(log.read_text()))
    first, last = (int(share * len(times)) for share in BETWEEN)
    return Measured((last - first) / (times[last] - times[first]), times[0] - began)


if __name__ == "__main__":
    typer.run(main)
