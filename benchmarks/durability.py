"""What a run survives, and what it costs to go on.

    python -m benchmarks.durability [--runs 200] [--large 100000]

`--runs` tables of 2,000 rows are answered by the scripted engine in processes that are killed
(`kill -9`) at random moments, seeded, until each is complete. A run of 200 rows dies at every
write, fsync and rename in turn. A run that is killed in the middle is compared with one that is
not, and the start of a run that is almost done with that of one that has hardly begun. Prints one
table in Markdown.
"""

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import typer

from mmrag_batch.factory import SCRIPTED_WINDOW
from mmrag_batch.io.draft import COMMIT_ROWS

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.faults.harness import (
    Crash,
    Disk,
    committed,
    end,
    failing_disk,
    predict,
    start,
    wait_for,
    write_table,
)

BOUND = COMMIT_ROWS + SCRIPTED_WINDOW
"""Rows that a kill may cost: those since the last commit, and those in the engine's hands."""
ROWS = 2000
FAST = 0.001
SLOW = 0.01
"""Seconds a row."""


class Kills(NamedTuple):
    """What happened to one table: kills, most rows redone after one, and whether it came out."""

    kills: int
    redone: int
    same: bool
    lost: int
    doubled: int


def endure(folder: Path, seed: int, whole: bytes) -> Kills:
    """Answer a table in processes that are killed, until it is complete."""
    write_table(folder / "in.csv", ROWS)
    log = folder / "asked"
    moments = random.Random(seed)
    kills = redone = 0
    while not (folder / "out.csv.manifest.json").exists():
        log.write_text("")
        process = start(folder, script={"delay": FAST, "log": str(log)})
        time.sleep(moments.uniform(0.2, 1.6))
        process.kill()
        code, output = end(process)
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(output)
        kills += code != 0
        asked = [int(line) for line in log.read_text().splitlines()]
        if code and not (folder / "out.csv").exists():
            redone = max(redone, sum(row >= committed(folder) for row in asked))
    got = (folder / "out.csv").read_bytes()
    ids = Counter(line.partition(b",")[0] for line in got.split(b"\nq")[1:])
    lost = sum(b"%d" % row not in ids for row in range(ROWS))
    return Kills(kills, redone, got == whole, lost, sum(ids.values()) - len(ids))


def die_everywhere(folder: Path) -> tuple[int, int]:
    """Die at each operation of the disk in three ways: how often, and how often made good."""
    write_table(folder / "in.csv", 200)
    with failing_disk(Disk()) as disk:
        predict(folder, "--quiet", output="whole.csv")
    whole = (folder / "whole.csv").read_bytes()
    good = tried = 0
    for kind in ("kill", "torn", "power"):
        for at in range(len(disk.log)):
            output = f"{kind}{at}.csv"
            try:
                with failing_disk(Disk(at, kind)):
                    predict(folder, "--quiet", output=output)
            except Crash:
                tried += 1
            done = predict(folder, "--quiet", output=output) == 0
            good += done and (folder / output).read_bytes() == whole
    return tried, good


def time_run(folder: Path, rows: int, *, kill_at: int | None = None) -> float:
    """Seconds to answer a table; with a kill once so many rows are committed, those of both."""
    write_table(folder / "in.csv", rows)
    started = time.monotonic()
    process = start(folder, script={"delay": SLOW})
    if kill_at is not None:
        wait_for(lambda: committed(folder) >= kill_at, within=600)
        process.kill()
        end(process)
        process = start(folder, script={"delay": SLOW})
    code, output = end(process, within=600)
    if code:
        raise SystemExit(output)
    return time.monotonic() - started


def time_start(folder: Path, rows: int, share: float) -> float:
    """Seconds until the first commit of a run that goes on when a share of its rows is done."""
    target = int(rows * share)
    process = start(folder)
    wait_for(lambda: committed(folder) >= target, within=600)
    process.kill()
    end(process)
    seconds = []
    for _ in range(5):
        before = committed(folder)
        started = time.monotonic()
        process = start(folder)
        wait_for(lambda before=before: committed(folder) > before)  # type: ignore[misc]
        seconds.append(time.monotonic() - started)
        process.kill()
        end(process)
    return median(seconds[1:])


def main(
    runs: Annotated[int, typer.Option(help="Tables that are answered under kills.")] = 200,
    large: Annotated[int, typer.Option(help="Rows of the table that is almost done.")] = 100_000,
) -> None:
    """Kill runs, go on, and print what came out."""
    lines: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / str(number) for number in range(10**6))

        def folder() -> Path:
            path = next(folders)
            path.mkdir()
            return path

        first = folder()
        write_table(first / "in.csv", ROWS)
        predict(first, "--quiet")
        whole = (first / "out.csv").read_bytes()
        ends = [endure(folder(), seed, whole) for seed in range(runs)]
        lines += [
            (
                f"outputs of {runs} runs equal to one without kills",
                str(sum(e.same for e in ends)),
                str(runs),
            ),
            ("kills", f"{sum(e.kills for e in ends):,}", ""),
            ("rows lost", str(sum(e.lost for e in ends)), "0"),
            ("rows doubled", str(sum(e.doubled for e in ends)), "0"),
            (
                "most rows answered again after a kill",
                str(max(e.redone for e in ends)),
                f"≤ {BOUND}",
            ),
        ]
        tried, good = die_everywhere(folder())
        lines.append(
            ("deaths at each write, fsync and rename, made good", f"{good} of {tried}", "all")
        )
        plain = median(time_run(folder(), ROWS) for _ in range(3))
        startup = median(time_run(folder(), 1) for _ in range(3))
        killed = median(time_run(folder(), ROWS, kill_at=ROWS // 2) for _ in range(3))
        lines += [
            ("seconds without a kill, and of a start", f"{plain:.2f}, {startup:.2f}", ""),
            ("seconds with a kill at 50%", f"{killed:.2f}", ""),
            ("the same beside one start", f"{(killed - startup) / plain:.3f}x", "≤ 1.03x"),
        ]
        big = folder()
        write_table(big / "in.csv", large)
        early, late = (time_start(big, large, share) for share in (0.01, 0.98))
        lines += [
            (f"seconds to the first commit at 1% of {large:,} rows", f"{early:.2f}", ""),
            ("the same between 98 and 99%", f"{late:.2f}", ""),
            ("ratio", f"{late / early:.2f}x", "about 1x"),
        ]
    typer.echo("| measured | result | goal |\n|---|---|---|")
    for line in lines:
        typer.echo(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    typer.run(main)
