"""What a run survives, and what it costs to go on.

    python -m benchmarks.durability [--runs 200]

`--runs` tables of 2,000 rows are answered by the scripted engine in processes that are killed
(`kill -9`) at random moments, seeded, until each is complete. A run of 200 rows dies at every
operation of its disk in turn, SQLite's included, in three ways (without the retriever, of which
rows without documents have no need). And a run that is killed in the middle is compared with one
that is not. Needs Linux and a C compiler. Prints one table in Markdown.
"""

import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import typer

from benchmarks.ratios import Ratio, interleave, per
from mmrag_batch.generation.engines.scripted import WINDOW
from mmrag_batch.run.store import COMMIT_ROWS
from tests.faults.commands import KINDS, Commands, Fault
from tests.faults.harness import (
    QUICK,
    asked,
    begin,
    committed,
    each,
    predict,
    run,
    wait_for,
    write_table,
)

BOUND = COMMIT_ROWS + WINDOW
"""Questions that a kill may cost: those since the last commit, and those in the engine's hands."""
ROWS, SOME = 2000, 400
FAST = 0.001
SLOW = 0.01
"""Seconds a row."""


class Kills(NamedTuple):
    """What happened to one table: kills, most questions asked again after one, and what came out.

    `lost` and `doubled` are rows of the output.
    """

    kills: int
    redone: int
    same: bool
    lost: int
    doubled: int


def endure(commands: Commands, folder: Path, seed: int, whole: bytes) -> Kills:
    """Answer a table in processes that are killed, until it is complete."""
    write_table(folder / "in.csv", ROWS)
    moments = random.Random(seed)
    kills = redone = 0
    while not (folder / "out.csv.manifest.json").exists():
        before = committed(folder)
        running = begin(commands, folder, script={"delay": FAST})
        time.sleep(moments.uniform(0.2, 1.6))
        running.send_signal(signal.SIGKILL)
        done = running.wait(within=600)
        if done.code not in (0, -signal.SIGKILL):
            raise SystemExit(done.output)
        kills += done.code != 0
        redone = max(redone, len(asked(folder)) - (committed(folder) - before))
    got = (folder / "out.csv").read_bytes()
    ids = Counter(line.partition(b",")[0] for line in got.split(b"\nq")[1:])
    lost = sum(b"%d" % row not in ids for row in range(ROWS))
    return Kills(kills, redone, got == whole, lost, sum(ids.values()) - len(ids))


def die_everywhere(commands: Commands, folder: Path) -> tuple[int, int]:
    """Die at each operation of the disk in each way: how often, and how often made good."""
    table = write_table(folder / "in.csv", 200).read_bytes()
    operations = run(commands, folder, "--quiet", log=True, changes=QUICK).operations
    whole = (folder / "out.csv").read_bytes()
    good: list[bool] = []

    def die(fault: Fault) -> None:
        place = folder / f"{fault.kind}-{fault.at}"
        place.mkdir()
        (place / "in.csv").write_bytes(table)
        died = run(commands, place, "--quiet", fault=fault, changes=QUICK).code == -signal.SIGKILL
        before = committed(place)
        done = run(commands, place, "--quiet", changes=QUICK).code == 0
        asks_once = len(asked(place)) == 200 - before
        same = done and (place / "out.csv").read_bytes() == whole
        good.append(died and asks_once and same)

    faults = (Fault(at, kind) for kind in KINDS for at in range(len(operations)))
    return each(die, faults), sum(good)


def answer(commands: Commands, folder: Path, rows: int, *, kill_at: int | None = None) -> None:
    """Answer a table, in two runs with a kill between them once so many rows are committed."""
    write_table(folder / "in.csv", rows)
    running = begin(commands, folder, script={"delay": SLOW})
    if kill_at is not None:
        wait_for(lambda: committed(folder) >= kill_at, within=600)
        running.send_signal(signal.SIGKILL)
        running.wait()
        running = begin(commands, folder, script={"delay": SLOW})
    done = running.wait(within=600)
    if done.code:
        raise SystemExit(done.output)


def compare(
    commands: Commands, folders: Iterator[Path], rows: int, repetitions: int
) -> dict[str, list[float]]:
    """Seconds of a run without a kill, of one of a single row, and of one with a kill at 50%."""
    sides: dict[str, Callable[[int], object]] = {
        "plain": lambda _: answer(commands, next(folders), rows),
        "start": lambda _: answer(commands, next(folders), 1),
        "killed": lambda _: answer(commands, next(folders), rows, kill_at=rows // 2),
    }
    return interleave(sides, repetitions)


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Killed and resumed, less one start, beside uninterrupted."""
    with tempfile.TemporaryDirectory() as name, Commands() as commands:
        seconds = compare(commands, _folders(Path(name)), SOME, repetitions)
    resumed = [killed - start for killed, start in zip(seconds["killed"], seconds["start"])]
    yield Ratio("11", per(resumed, seconds["plain"]))


def main(
    runs: Annotated[int, typer.Option(help="Tables that are answered under kills.")] = 200,
) -> None:
    """Kill runs, go on, and print what came out."""
    with tempfile.TemporaryDirectory() as name, Commands() as commands:
        folders = _folders(Path(name))
        first = next(folders)
        write_table(first / "in.csv", ROWS)
        predict(first, "--quiet")
        whole = (first / "out.csv").read_bytes()
        ends = [endure(commands, next(folders), seed, whole) for seed in range(runs)]
        tried, good = die_everywhere(commands, next(folders))
        seconds = compare(commands, folders, ROWS, 4)
    plain, startup, killed = map(median, seconds.values())
    lines = [
        (f"outputs of {runs} runs equal to one without kills", sum(e.same for e in ends), runs),
        ("kills", f"{sum(e.kills for e in ends):,}", ""),
        ("rows lost", sum(e.lost for e in ends), 0),
        ("rows doubled", sum(e.doubled for e in ends), 0),
        ("most questions asked again after a kill", max(e.redone for e in ends), f"≤ {BOUND}"),
        ("deaths at each operation of the disk, made good", f"{good:,} of {tried:,}", "all"),
        ("seconds without a kill, and of a start", f"{plain:.2f}, {startup:.2f}", ""),
        ("seconds with a kill at 50%", f"{killed:.2f}", ""),
        ("the same beside one start", f"{(killed - startup) / plain:.3f}x", "≤ 1.03x"),
    ]
    typer.echo("| measured | result | goal |\n|---|---|---|")
    for line in lines:
        typer.echo(f"| {' | '.join(map(str, line))} |")


def _folders(root: Path) -> Iterator[Path]:
    """Any number of new ones."""
    for number in range(10**6):
        (root / str(number)).mkdir()
        yield root / str(number)


if __name__ == "__main__":
    typer.run(main)
