"""Runs of `predict` that are killed, starved of disk or stopped, in this process and in others."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from typer.testing import CliRunner

from mmrag_batch.cli import app

COLUMNS = ("id", "question_text", "answer_choices", "note")
COMMAND = [sys.executable, "-m", "mmrag_batch"]


def write_table(path: Path, rows: int, *, broken: Sequence[int] = ()) -> Path:
    """A table of questions without documents; those in `broken` cannot be answered."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in range(rows):
            choices = "not a list" if row in broken else '["yes", "no"]'
            table.writerow([f"q{row}", f"Is {row} even?", choices, f'é "{row}"\nand more'])
    return path


def predict(folder: Path, *options: object, output: str = "out.csv") -> int:
    """Run `predict` in this process; its exit code. Raises what it does not catch."""
    return call("predict", folder / "in.csv", folder / output, "--engine", "scripted", *options)[0]


def call(*arguments: object) -> tuple[int, str]:
    """Exit code and output (of both kinds) of a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def start(folder: Path, *options: object, script: object = None) -> "subprocess.Popen[str]":
    """Start `predict` in a process and a process group of its own."""
    words = ("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted", *options)
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
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


def committed(folder: Path) -> int:
    """The rows that the journal vouches for."""
    journal = folder / "out.csv.state" / "journal"
    if not journal.exists():
        return 0
    lines = journal.read_text().splitlines(keepends=True)
    lines = [line for line in lines if " commit {" in line and line.endswith("\n")]
    return int(json.loads(lines[-1].split(" ", 2)[2])["row"]) if lines else 0


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {file.name for file in folder.iterdir()}


class Crash(BaseException):
    """The process is dead: nothing that it would do after this may have an effect."""


@dataclass
class Disk:
    """Stands between a run and its disk, and fails at operation `at`, counted from 0.

    `kind` is `kill` (the process dies before it), `torn` (half of a write is done, then it dies),
    `power` (as `kill`, and what was not yet synced is lost) or the number of an OSError, which this
    and every later operation of that name raises.
    """

    at: int = -1
    kind: str | int = "kill"
    only: str | None = None
    """Count operations of this name only: write, fsync or replace."""
    log: list[str] = field(default_factory=list)
    failed: str | None = None
    after: list[str] = field(default_factory=list)
    """What was tried after the failure."""

    def __post_init__(self) -> None:
        self._real = {name: getattr(os, name) for name in ("write", "fsync", "replace")}
        self._synced: dict[str, int] = {}
        self._renamed: list[tuple[str, str, bytes | None]] = []

    def write(self, descriptor: int, data: bytes) -> int:
        path = _path(descriptor)
        if not Path(path).is_file():
            return int(self._real["write"](descriptor, data))
        self._synced.setdefault(path, os.fstat(descriptor).st_size)
        if self._is_time("write") and self.kind == "torn":
            self._real["write"](descriptor, bytes(data)[: max(1, len(data) // 2)])
        self._step("write", path)
        return int(self._real["write"](descriptor, data))

    def fsync(self, descriptor: int) -> None:
        path = _path(descriptor)
        self._step("fsync", path)
        self._real["fsync"](descriptor)
        self._synced.pop(path, None)
        if Path(path).is_dir():
            self._renamed = [move for move in self._renamed if str(Path(move[1]).parent) != path]

    def replace(self, source: Any, target: Any) -> None:
        source, target = os.fspath(source), os.fspath(target)
        self._step("replace", target)
        kept = Path(target).read_bytes() if Path(target).is_file() else None
        self._real["replace"](source, target)
        self._renamed.append((source, target, kept))

    def _is_time(self, name: str) -> bool:
        return self.only in (None, name) and len(self.log) >= self.at >= 0

    def _step(self, name: str, path: str) -> None:
        if self.failed is not None:
            self.after.append(f"{name} {Path(path).name}")
        if self.failed is not None and not isinstance(self.kind, int):
            raise Crash
        if self._is_time(name):
            self.failed = self.failed or f"{name} {Path(path).name}"
            if isinstance(self.kind, int):
                raise OSError(self.kind, os.strerror(self.kind), path)
            if self.kind == "power":
                self._lose()
            raise Crash
        if self.only in (None, name):
            self.log.append(f"{name} {Path(path).name}")

    def _lose(self) -> None:
        """Undo what is not on disk yet."""
        for source, target, kept in reversed(self._renamed):
            self._real["replace"](target, source)
            if kept is not None:
                Path(target).write_bytes(kept)
        for path, size in self._synced.items():
            if Path(path).exists():
                os.truncate(path, size)


@contextmanager
def failing_disk(disk: Disk) -> Iterator[Disk]:
    """Everything written in this process goes through `disk`."""
    with (
        mock.patch("os.write", disk.write),
        mock.patch("os.fsync", disk.fsync),
        mock.patch("os.replace", disk.replace),
    ):
        yield disk


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
