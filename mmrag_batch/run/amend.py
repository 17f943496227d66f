"""Going on from rows that are there: more rows at the end of the input (`--extend`), or another try
at the rows without an answer (`--retry-errors`). Every other byte stays as it was.

Either is a run like any other, whose journal begins with what was there.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from mmrag_batch.errors import ConfigError, InternalError
from mmrag_batch.io import disk
from mmrag_batch.io.draft import Paths
from mmrag_batch.io.journal import Begin, Commit, Failure, Journal, Saved, read_journal
from mmrag_batch.io.manifest import CHUNK, Manifest
from mmrag_batch.run.resume import ANEW, begin

EXTENDABLE = (".csv", ".jsonl")


def check_extends(table: Path, known: Begin | Manifest, run: Begin) -> None:
    """Raise ConfigError unless a table is the one that was known, with rows added at its end."""
    if run.columns != known.columns:
        raise ConfigError(f"{table} has other columns than before. {ANEW}")
    if not table.name.lower().endswith(EXTENDABLE):
        raise ConfigError(f"--extend is for {' and '.join(EXTENDABLE)} tables only. {ANEW}")
    digest = hashlib.sha256()
    with table.open("rb") as stream:
        left = known.input_bytes
        while left and (chunk := stream.read(min(CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
            last = chunk[-1:]
    if left or digest.hexdigest() != known.fingerprint["input"]:
        raise ConfigError(f"{table} does not begin with the rows that it had before. {ANEW}")
    if last not in b"\r\n":
        raise ConfigError(f"{table} did not end in a line end before rows were added. {ANEW}")


def extend_saved(paths: Paths, saved: Saved, run: Begin) -> Saved:
    """Let an unfinished run go on to the end of a table that has grown."""
    journal = Journal(paths.journal, saved.valid)
    try:
        journal.append(run)
    finally:
        journal.close()
    grown = read_journal(paths.journal)
    assert grown is not None  # it was just written
    return grown


def extend_complete(paths: Paths, manifest: Manifest, run: Begin) -> Saved:
    """Begin a run with all rows of a complete output in place."""
    paths.state.mkdir(exist_ok=True)
    seed = paths.state / "seed"
    crc = size = 0
    with open_output(paths) as old, seed.open("wb") as new:
        while chunk := old.read(CHUNK):
            new.write(chunk)
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
        new.flush()
        os.fsync(new.fileno())
    there = Commit(
        manifest.stop,
        manifest.offset,
        manifest.line,
        size,
        crc,
        **manifest.rows,
        seconds=manifest.seconds,
        failures=tuple(read_failed(paths.errors, manifest)),
    )
    return begin(paths, run, there)


def plant(paths: Paths) -> None:
    """Put the rows that a run begins with in their place, unless they are there already."""
    seed = paths.state / "seed"
    if seed.exists():
        disk.replace(seed, paths.partial)


def begin_retry(paths: Paths, manifest: Manifest, run: Begin) -> Saved:
    """Begin a run over the failed rows of a complete output."""
    read_failed(paths.errors, manifest)  # is there, and whole
    paths.state.mkdir(exist_ok=True)
    failures = paths.errors.read_text(encoding="utf-8")
    disk.write_whole(_retried(paths), failures, by_way_of=paths.state / "new")
    done = manifest.rows
    kept = Commit(
        manifest.first, ok=done["ok"], degraded=done["degraded"], seconds=manifest.seconds
    )
    return begin(paths, run, kept)


class Retry:
    """The failed rows of an output that are not answered yet, and the bytes between them."""

    def __init__(self, paths: Paths, done: Commit) -> None:
        failures = read_failed(_retried(paths))
        self._left = {item.row: item for item in failures if item.row >= done.row}
        self._place = max((item.stop for item in failures if item.row < done.row), default=0)
        self._paths = paths

    @property
    def rows(self) -> list[int]:
        """The numbers of the rows to read."""
        return list(self._left)

    def before(self, row: int) -> Iterator[bytes]:
        """What stands in the old output between the failed row before `row` and that row."""
        failure = self._left.pop(row)
        yield from self._read(failure.start)
        self._place = failure.stop

    def rest(self) -> Iterator[bytes]:
        """What stands in the old output after its last failed row."""
        return self._read(None)

    def _read(self, stop: int | None) -> Iterator[bytes]:
        with open_output(self._paths) as old:
            old.seek(self._place)
            while chunk := old.read(CHUNK if stop is None else min(CHUNK, stop - self._place)):
                self._place += len(chunk)
                yield chunk


def find_retry(paths: Paths, done: Commit) -> Retry | None:
    """The retry that a run is, if it is one."""
    return Retry(paths, done) if _retried(paths).exists() else None


def _retried(paths: Paths) -> Path:
    return paths.state / "retry.jsonl"


def open_output(paths: Paths) -> IO[bytes]:
    if paths.output.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(paths.output, "rb"))
    return paths.output.open("rb")


def read_failed(path: Path, manifest: Manifest | None = None) -> list[Failure]:
    """The rows without an answer; raises InternalError unless there are as many as there were."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if manifest is not None and len(lines) != manifest.rows["error"]:
        raise InternalError(
            f"{path} has {len(lines)} rows, and {manifest.rows['error']} have no answer. {ANEW}"
        )
    return [Failure(**json.loads(line)) for line in lines]
