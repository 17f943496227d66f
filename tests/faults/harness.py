"""Runs of `predict` that are killed, starved of disk or stopped, in this process and in others."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from tests.faults.commands import Commands, Done, Fault, Running

COLUMNS = ("id", "question_text", "answer_choices", "note")
LISTENING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from mmrag_batch.cli.app import main
main()
"""
"""The command, which hears signals even where it was started by one that does not, as nohup."""
COMMAND = [sys.executable, "-c", LISTENING]
DONE = {"in.csv", "out.csv", "out.csv.manifest.json", "out.csv.store"}
"""What is in a folder whose output is complete."""
QUICK = {"quick": True}
"""For loops over all that can happen to a disk; see `hooks.settle`."""
T = TypeVar("T")


def write_table(path: Path, rows: int, *, broken: Sequence[int] = ()) -> Path:
    """A table of questions without documents; those in `broken` cannot be answered."""
    lines = []
    for row in range(rows):
        choices = "not a list" if row in broken else '["yes", "no"]'
        lines.append((f"q{row}", f"Is {row} even?", choices, f'é "{row}"\nand more'))
    return write_rows(path, lines)


def write_rows(path: Path, rows: Iterable[Sequence[str]], columns: Sequence[str] = COLUMNS) -> Path:
    """A table of these rows."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# Runs in this process. -------------------------------------------------------------------------


def predict(folder: Path, *options: object, output: str = "out.csv") -> int:
    """Run `predict` in this process; its exit code. Raises what it does not catch."""
    return call(*words(folder, *options, output=output))[0]


def ask(
    folder: Path, *options: object, output: str = "out.csv", script: Mapping[str, object] = {}
) -> tuple[int, list[int]]:
    """The same; its exit code, and the numbers of the rows that the engine was asked."""
    code, _ = call(*words(folder, *options, output=output), environ=_environ(folder, script))
    return code, asked(folder)


def call(*arguments: object, environ: Mapping[str, str] = {}) -> tuple[int, str]:
    """Exit code and output (of both kinds) of a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def words(folder: Path, *options: object, output: str = "out.csv") -> tuple[object, ...]:
    """A `predict` with the scripted engine, as it is typed."""
    return ("predict", folder / "in.csv", folder / output, "--engine", "scripted", *options)


# Runs in processes of their own. ---------------------------------------------------------------


def begin(
    commands: Commands,
    folder: Path,
    *options: object,
    output: str = "out.csv",
    script: Mapping[str, object] = {},
    fault: Fault | None = None,
    log: bool = False,
    changes: Mapping[str, object] = {},
    environ: Mapping[str, str] = {},
) -> Running:
    """Start `predict` over in.csv; `changes` are for `hooks.settle`."""
    return commands.start(
        *words(Path(), *options, output=output),
        folder=folder,
        fault=fault,
        environ={**_environ(folder, script), **environ},
        hook="tests.faults.hooks:settle",
        hook_argument=dict(changes),
        log=log,
    )


def run(
    commands: Commands,
    folder: Path,
    *options: object,
    output: str = "out.csv",
    script: Mapping[str, object] = {},
    fault: Fault | None = None,
    log: bool = False,
    changes: Mapping[str, object] = {},
    environ: Mapping[str, str] = {},
) -> Done:
    """The same to its end."""
    return begin(
        commands,
        folder,
        *options,
        output=output,
        script=script,
        fault=fault,
        log=log,
        changes=changes,
        environ=environ,
    ).wait(within=120)


def leave(commands: Commands, folder: Path, rows: int, *, stuck_at: int | None = None) -> None:
    """A run that was killed with so many rows committed, when the engine had a row in its hands."""
    row = rows if stuck_at is None else stuck_at
    running = begin(commands, folder, script={"slow": {str(row): 600}}, changes=QUICK)
    wait_for(lambda: row - 1 in asked(folder) and committed(folder) == rows)
    running.send_signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL


def start(folder: Path, *options: object, script: object = None) -> "subprocess.Popen[str]":
    """Start `predict` in a process and a process group of its own, from the interpreter on."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words(folder, *options))],
        env=os.environ | ({} if script is None else {"SCRIPTED_ENGINE": json.dumps(script)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[str]", *, within: float = 60.0) -> tuple[int, str]:
    """Wait for a process; its exit code and output."""
    try:
        output, _ = process.communicate(timeout=within)
    finally:
        process.kill()
    return process.returncode, output


def wait_for(condition: Callable[[], Any], *, within: float = 30.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def each(check: Callable[[T], None], cases: Iterable[T]) -> int:
    """Check every case, a few at once; how many there were."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return len(list(pool.map(check, cases)))


def telling(operations: Sequence[str]) -> list[int]:
    """The places where a fault can tell something: before the first and the last of operations that
    are alike and follow each other, as the records of a journal do."""
    around = zip(operations, ("", *operations), (*operations[1:], ""))
    return [at for at, (one, before, after) in enumerate(around) if not before == one == after]


# What a run has left. --------------------------------------------------------------------------


def asked(folder: Path) -> list[int]:
    """The numbers of the rows that the engine was asked by the last run, in order."""
    log = _log(folder)
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def committed(folder: Path, store: str = "out.csv.store") -> int:
    """How many answers a store vouches for, while a run is on or after it died."""
    (count,) = query(folder / store, "SELECT count(*) FROM answers", [(0,)])[0]
    return int(count)


def statuses(folder: Path) -> list[int]:
    """The status of each answer that is committed, as the store has it."""
    return [row[0] for row in query(folder / "out.csv.store", "SELECT status FROM answers", [])]


def starts(folder: Path) -> list[dict[str, Any]]:
    """The processes that have noted that they are at work, in order."""
    found = query(folder / "out.csv.store", "SELECT start FROM starts ORDER BY id", [])
    return [json.loads(row[0]) for row in found]


def query(store: Path, select: str, otherwise: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What a store says to a query; `otherwise` where there is none yet."""
    deadline = time.monotonic() + 30
    while store.exists():
        try:
            with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as sql:
                return sql.execute(select).fetchall()
        except sqlite3.OperationalError as error:
            name = error.sqlite_errorname
            if name == "SQLITE_ERROR":  # there is no such table yet
                break
            if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                return _query_copy(store, select, otherwise)
            assert name.startswith("SQLITE_BUSY"), name
            assert time.monotonic() < deadline, "the store is never free"
            time.sleep(0.005)
    return otherwise


def _query_copy(
    store: Path, select: str, otherwise: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """The same of a store with a commit to undo, which is for the next run to do."""
    with tempfile.TemporaryDirectory() as name:
        for file in (store, store.with_name(store.name + "-journal")):
            if file.exists():
                shutil.copy(file, name)
        with closing(sqlite3.connect(Path(name, store.name))) as sql:
            has_table = sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone()
            return sql.execute(select).fetchall() if has_table else otherwise


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {file.name for file in folder.iterdir()}


def manifest(folder: Path, output: str = "out.csv") -> dict[str, Any]:
    """The manifest of an output."""
    values: dict[str, Any] = json.loads((folder / f"{output}.manifest.json").read_bytes())
    return values


def identity(file: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced."""
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder: its inode, its links, and its bytes or where it leads to."""
    found = {}
    for file in sorted(folder.rglob("*")):
        status = file.lstat()
        data = b""
        if file.is_symlink():
            data = os.fsencode(file.readlink())
        elif file.is_file():
            data = file.read_bytes()
        found[str(file.relative_to(folder))] = (status.st_ino, status.st_nlink, data)
    return found


def _environ(folder: Path, script: Mapping[str, object]) -> dict[str, str]:
    """What has the scripted engine follow a script and say what it was asked."""
    log = _log(folder)
    log.unlink(missing_ok=True)
    return {"SCRIPTED_ENGINE": json.dumps({"log": str(log), **script})}


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.asked")
