"""What the answer store costs: a large table answered without a model, and asked again.

    python -m benchmarks.answer_store [--rows 1000000] [--few 10000]

Draws a table of different questions and sends it through `mmrag-batch predict --engine scripted`;
then the same command again, on the unchanged table and with one cell changed. Beside them, a loop
that does no more than what is promised: how fast this machine and its disk can be. Then tables of
which 50% and 90% of the rows repeat a question, beside one of the same length that does not: an
engine that takes as long as a small model shows what is not asked. Prints tables in Markdown.
"""

import csv
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from time import monotonic, process_time
from typing import Annotated, NamedTuple

import typer

from mmrag_batch.bundle import sha256
from mmrag_batch.run import database
from mmrag_batch.run.store import COMMIT_ROWS
from mmrag_batch.settings import DEMO_BUNDLE

DELAY = 0.01
"""Seconds a question, where questions repeat: what one takes with the demo bundle on two cores."""


class Measured(NamedTuple):
    """What a command took: seconds, those of a processor, and peak resident memory in MiB."""

    seconds: float
    cpu: float
    peak: float


def write_questions(path: Path, rows: int, different: int) -> Path:
    """A table of questions with two choices each, so many of them different."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["question_text", "answer_choices", "note"])
        for row in range(rows):
            table.writerow([f"Is {row % different} even?", '["yes", "no"]', f"row {row}"])
    return path


def predict(table: Path, *options: str, delay: float = 0.0) -> Measured:
    """Answer a table in a process of its own."""
    command = [sys.executable, "-m", "mmrag_batch", "predict", str(table)]
    command += [str(table.with_suffix(".out.csv")), "--engine", "scripted", "--device", "cpu"]
    command += ["--quiet", "--bundle", str(DEMO_BUNDLE), *options]
    script = {"SCRIPTED_ENGINE": json.dumps({"delay": delay})} if delay else {}
    started = monotonic()
    process = subprocess.Popen(command, env=os.environ | script)  # noqa: S603  # our own command
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(monotonic() - started, cpu, usage.ru_maxrss / 1024)  # KiB on Linux


def answer_plainly(table: Path) -> Measured:
    """The least that is promised, in one process and without a check: each row's key, an answer in
    JSON under it, on disk with COMMIT_ROWS others, and the output, from table and store."""
    started, cpu = monotonic(), process_time()
    sha256(table)
    with closing(sqlite3.connect(table.with_suffix(".plain"), isolation_level=None)) as sql:
        sql.executescript(f"PRAGMA synchronous = FULL; {database.SCHEMA}")
        sql.execute("PRAGMA journal_mode = PERSIST")
        for batch in _batches(table):
            answers = [(key, 1, 0, b"", _answer(key), key[:8]) for key, _ in batch]
            sql.execute("BEGIN IMMEDIATE")
            sql.execute(database.keep(len(answers)), tuple(chain.from_iterable(answers)))
            sql.execute("COMMIT")
        with table.with_suffix(".plain.csv").open("w", newline="", encoding="utf-8") as stream:
            output = csv.writer(stream)
            for batch in _batches(table):
                keys = [key for key, _ in batch]
                kept = {row[0]: row[4] for row in sql.execute(database.find(len(keys)), keys)}
                for key, row in batch:
                    text, index, shares = json.loads(kept[key])
                    output.writerow([*row, text, index, shares[index], json.dumps(shares), "ok"])
            stream.flush()
            os.fsync(stream.fileno())
    return Measured(monotonic() - started, process_time() - cpu, 0)


def _batches(table: Path) -> Iterator[list[tuple[bytes, list[str]]]]:
    with table.open(newline="", encoding="utf-8") as stream:
        rows = csv.reader(stream)
        next(rows)
        while batch := list(islice(rows, COMMIT_ROWS)):
            yield [(_key(row), row) for row in batch]


def _key(row: list[str]) -> bytes:
    means = json.dumps([row[0], None, json.loads(row[1]), []])
    return blake2b(means.encode(), digest_size=16).digest()


def _answer(key: bytes) -> bytes:
    share = key[0] / 256
    return json.dumps(["yes", 0, [share, 1 - share]]).encode()


def time_hash(file: Path) -> float:
    started = monotonic()
    sha256(file)
    return monotonic() - started


def main(
    rows: Annotated[int, typer.Option(help="Of the large table.")] = 1_000_000,
    few: Annotated[int, typer.Option(help="Of the small one.")] = 10_000,
    repeated: Annotated[int, typer.Option(help="Of those with equal questions.")] = 20_000,
) -> None:
    """Measure runs without a model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = predict(write_questions(folder / "small.csv", few, few))
        table = write_questions(folder / "large.csv", rows, rows)
        first = predict(table)
        size = table.with_suffix(".out.csv.store").stat().st_size
        hashed = time_hash(table)
        unchanged = predict(table)
        text = table.read_text(encoding="utf-8")
        table.write_text(text.replace(f"Is {rows // 2} even", f"Is {rows // 2} odd"), "utf-8")
        changed = predict(table)
        plain = answer_plainly(table)
        typer.echo("| run | seconds | of a processor | rows/s | peak memory, MiB |")
        typer.echo("|---|---|---|---|---|")
        for what, count, run in (
            (f"{few:,} rows", few, small),
            (f"{rows:,} rows", rows, first),
            ("again, unchanged", rows, unchanged),
            ("again, one cell changed", rows, changed),
            ("the least that is promised", rows, plain),
        ):
            speed, peak = f"{count / run.seconds:,.0f}", f"{run.peak:.0f}" if run.peak else ""
            typer.echo(f"| {what} | {run.seconds:.1f} | {run.cpu:.1f} | {speed} | {peak} |")
        typer.echo(f"\nmemory: {first.peak / small.peak:.3f}x of the small table's")
        typer.echo(f"store: {size / rows:.0f} bytes a row; a hash of the table: {hashed:.2f} s")
        all_different = predict(write_questions(folder / "a.csv", repeated, repeated), delay=DELAY)
        typer.echo("\n| rows that repeat a question | seconds | ratio |\n|---|---|---|")
        typer.echo(f"| none of {repeated:,} | {all_different.seconds:.1f} | |")
        for share in (50, 90):
            different = repeated * (100 - share) // 100
            run = predict(
                write_questions(folder / f"{share}.csv", repeated, different), delay=DELAY
            )
            ratio = all_different.seconds / run.seconds
            typer.echo(f"| {share}% | {run.seconds:.1f} | {ratio:.2f}x |")
        typer.echo(f"\nLoad average: {os.getloadavg()[2]:.1f}.")


if __name__ == "__main__":
    typer.run(main)
