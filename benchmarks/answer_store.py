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
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from time import monotonic, process_time
from typing import Annotated

import typer

from benchmarks.ratios import Ratio, Usage, interleave, per, run_python
from mmrag_batch.bundle import sha256
from mmrag_batch.run import database
from mmrag_batch.run.store import COMMIT_ROWS
from mmrag_batch.settings import DEMO_BUNDLE

DELAY = 0.01
"""Seconds a question, where questions repeat: what one takes with the demo bundle on two cores."""
HUNDRED, SOME, MILLION = 100, 10_000, 1_000_000
"""Rows without a model, in the table of docs/performance.md: of a start, of a run, of the goal."""
FEW = 300
"""Rows of which some repeat a question."""


def write_questions(path: Path, rows: int, different: int) -> Path:
    """A table of questions with two choices each, so many of them different."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["question_text", "answer_choices", "note"])
        for row in range(rows):
            table.writerow([f"Is {row % different} even?", '["yes", "no"]', f"row {row}"])
    return path


def predict(table: Path, *options: str, delay: float = 0.0) -> Usage:
    """Answer a table in a process of its own."""
    script = {"SCRIPTED_ENGINE": json.dumps({"delay": delay})} if delay else {}
    return run_python(
        *("-m", "mmrag_batch", "predict", table, table.with_suffix(".out.csv")),
        *("--engine", "scripted", "--device", "cpu", "--quiet", "--bundle", DEMO_BUNDLE, *options),
        env=os.environ | script,
    )


def answer_plainly(table: Path) -> Usage:
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
    return Usage("", monotonic() - started, process_time() - cpu, 0)


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


def change_one(table: Path, number: int) -> None:
    """Another question in that row."""
    text = table.read_text(encoding="utf-8")
    assert f"Is {number} even" in text
    table.write_text(text.replace(f"Is {number} even", f"Is {number} odd", 1), "utf-8")


def repeating(folder: Path, rows: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds beyond a start for tables of as many rows, of which so many percent repeat one."""
    starts = write_questions(folder / "one.csv", 1, 1)
    different = {share: max(1, rows * (100 - share) // 100) for share in (0, 50, 90)}
    tables = {
        f"{share}%": write_questions(folder / f"{share}.csv", rows, count)
        for share, count in different.items()
    }
    sides: dict[str, Callable[[int], Usage]] = {
        name: lambda _, table=table: predict(table, "--fresh", delay=DELAY)  # type: ignore[misc]
        for name, table in {"start": starts, **tables}.items()
    }
    seconds = interleave(sides, repetitions)
    for table in tables.values():  # the header, and every row
        assert len(table.with_suffix(".out.csv").read_text("utf-8").splitlines()) == rows + 1
    start = seconds.pop("start")
    return {name: [a - b for a, b in zip(values, start)] for name, values in seconds.items()}


def ratios(keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Runs without a model, and tables that repeat questions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(keys) & {"15a", "15b", "15c"}:
            small, large = (
                write_questions(folder / f"{rows}.csv", rows, rows) for rows in (HUNDRED, SOME)
            )
            found = [_stored(small, large, number) for number in range(repetitions)][1:]
            for letter, values in zip("abc", zip(*found)):
                yield Ratio(f"15{letter}", values)
        if set(keys) & {"16a", "16b"}:
            seconds = repeating(folder, FEW, repetitions)
            yield Ratio("16a", per(seconds["0%"], seconds["50%"]))
            yield Ratio("16b", per(seconds["0%"], seconds["90%"]))


def _stored(small: Path, large: Path, number: int) -> tuple[float, float, float]:
    """Rows a second beyond a start; seconds of a run on the unchanged table, but for a hash of it;
    and what one changed cell takes, of a processor, in a table of a million rows, by its slope."""
    starting, first = predict(small, "--fresh"), predict(large, "--fresh")
    unchanged = predict(large).seconds - time_hash(large)
    for table in (small, large):
        change_one(table, number)
    few, many = predict(small).cpu, predict(large).cpu
    slope = (many - few) / (SOME - HUNDRED)
    rate = (SOME - HUNDRED) / (first.seconds - starting.seconds)
    return rate, unchanged, few + slope * (MILLION - HUNDRED)


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
        change_one(table, rows // 2)
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
        seconds = repeating(folder, repeated, 2)
        typer.echo("\n| rows that repeat a question | seconds | ratio |\n|---|---|---|")
        for share, (value,) in seconds.items():
            typer.echo(f"| {share} | {value:.1f} | {seconds['0%'][0] / value:.2f}x |")
        typer.echo(f"\nLoad average: {os.getloadavg()[2]:.1f}.")


if __name__ == "__main__":
    typer.run(main)
