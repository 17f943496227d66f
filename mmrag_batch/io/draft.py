"""The output of a run while it is written: a partial file, and the journal that vouches for it.

    out.csv.partial    the rows so far, in the order of the input
    out.csv.state/     the journal: which of them are safely there
    out.csv.lock       held while a run writes

A commit puts the rows since the last one on disk first and then says so in the journal. Whatever
the partial file holds beyond the last commit is cut off when a run goes on.
"""

import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mmrag_batch.errors import InternalError, StorageError
from mmrag_batch.io import disk
from mmrag_batch.io.journal import Commit, Failure, Journal, Saved, Start
from mmrag_batch.io.output import status_of
from mmrag_batch.records import Row

COMMIT_ROWS = 64
COMMIT_SECONDS = 5.0
"""A commit comes with the first row that reaches either of these."""
SPILL = 2**20
"""Bytes after which uncommitted rows leave the memory."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of a run, all of them beside its output."""

    output: Path

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)

    @property
    def partial(self) -> Path:
        return self._beside(".partial")

    @property
    def state(self) -> Path:
        return self._beside(".state")

    @property
    def journal(self) -> Path:
        return self.state / "journal"

    @property
    def lock(self) -> Path:
        return self._beside(".lock")

    @property
    def manifest(self) -> Path:
        return self._beside(".manifest.json")

    @property
    def errors(self) -> Path:
        return self._beside(".errors.jsonl")


class Draft:
    """Adds rows to the output of a run where its last commit left it; a context manager.

    `check_lock` raises when this run may no longer write. Leaving the context commits nothing.
    Methods may be called from any thread. Raises InternalError if committed rows are gone,
    StorageError where the disk fails: what the journal says then holds, and nothing after it.
    """

    def __init__(self, paths: Paths, saved: Saved, check_lock: Callable[[], None]) -> None:
        self.paths = paths
        self._check_lock = check_lock
        self._commit = saved.commit
        self._next = saved.commit
        self._failures: list[Failure] = []
        self._pending = bytearray()
        self._broken = False
        self._stop = saved.begin.stop
        self._seconds = saved.commit.seconds
        self._opened = self._last = time.monotonic()
        self._lock = threading.RLock()
        self._journal = Journal(paths.journal, saved.valid)
        with disk.storing(paths.partial, 0):
            self._file = os.open(paths.partial, os.O_RDWR | os.O_CREAT, 0o666)
            disk.sync_folder(paths.partial.parent)
        if os.fstat(self._file).st_size < saved.commit.size:
            raise InternalError(
                f"{paths.partial} is shorter than the {saved.commit.size:,} bytes that were "
                "committed: rows of it are gone. Add `--fresh` to begin anew."
            )
        os.ftruncate(self._file, saved.commit.size)
        os.lseek(self._file, 0, os.SEEK_END)

    @property
    def committed(self) -> Commit:
        """The last commit, which is what a run would go on from."""
        return self._commit

    @property
    def row(self) -> int:
        """The number of the next row to add."""
        return self._next.row

    @property
    def rows(self) -> dict[str, int]:
        """The rows added so far, by status."""
        added = self._next
        return {"ok": added.ok, "degraded": added.degraded, "error": added.error}

    def start(self, start: Start) -> None:
        """Note that a process took the run up."""
        with disk.storing(self.paths.journal, 0):
            self._journal.append(start)

    def copy(self, data: bytes) -> None:
        """Add bytes that are not those of a new row, such as a header."""
        with self._lock:
            self._pending += data
            self._next = replace(
                self._next, size=self._next.size + len(data), crc=zlib.crc32(data, self._next.crc)
            )
            if len(self._pending) >= SPILL and not self._broken:
                self._broken = True
                self._write()
                self._broken = False

    def add(self, row: Row, data: bytes, *, before: Iterable[bytes] = ()) -> None:
        """Add a row, behind bytes that are `before` it in a complete output; commits at times."""
        assert row.end is not None  # every reader sets it
        with self._lock:
            for chunk in before:
                self.copy(chunk)
            start = self._next.size
            self.copy(data)
            if row.error is not None:
                place = (row.error.code, row.error.message, start, start + len(data))
                self._failures.append(Failure(row.number, row.line, row.id, *place))
            status = status_of(row)
            self._next = replace(
                self._next,
                row=row.number + 1,
                offset=row.end.offset,
                line=row.end.line,
                **{status: getattr(self._next, status) + 1},
            )
            rows = self._next.row - self._commit.row
            if rows >= COMMIT_ROWS or time.monotonic() - self._last >= COMMIT_SECONDS:
                self.commit()

    def complete(self, rest: Iterable[bytes] = ()) -> None:
        """Add what is behind the last row in a complete output, and commit all there is."""
        with self._lock:
            for chunk in rest:
                self.copy(chunk)
            self._next = replace(self._next, row=self._stop)
            self.commit()

    def commit(self) -> None:
        """Put every row added so far on disk, and say so in the journal."""
        with self._lock:
            gained = self._next.row > self._commit.row or self._next.row == self._stop
            if self._broken or not gained or self._next.size == self._commit.size:
                return
            seconds = self._seconds + time.monotonic() - self._opened
            done = replace(self._next, seconds=seconds, failures=tuple(self._failures))
            self._broken = True  # unless all of this succeeds, nothing may be written any more
            with disk.storing(self.paths.partial, len(self._pending)):
                self._check_lock()
                self._write()
                os.fsync(self._file)
                if not os.fstat(self._file).st_nlink:
                    raise StorageError(f"{self.paths.partial} was deleted under the run.")
                self._journal.append(done)
            self._broken = False
            self._commit = self._next = replace(done, failures=())
            self._failures.clear()
            self._last = time.monotonic()

    def _write(self) -> None:
        """Move what waits in memory to the file."""
        with disk.storing(self.paths.partial, len(self._pending)):
            disk.append(self._file, bytes(self._pending))
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._journal.close()
            os.close(self._file)
