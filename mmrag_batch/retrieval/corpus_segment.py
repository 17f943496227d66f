"""A segment of a corpus that is read: vectors and documents that never change."""

import errno
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.errors import MissingError, StorageError
from mmrag_batch.retrieval.corpus_manifest import Segment
from mmrag_batch.retrieval.search import Block

ROW = np.dtype([("id", "S16"), ("content", "S16"), ("start", "<u8")])
"""Of a document: hashes of its id and of all that it is; where its record starts."""
BLOCK = 8192
"""Documents that are multiplied at once: 32 MiB at 1,024 dimensions."""
OPEN_FILES = 65_536
"""Files that a process may have open, where the system lets it: two of each segment."""
AGAIN = "`mmrag-batch index` makes again what is damaged, with the command that made the corpus."
Record = dict[str, Any]
"""`id`, `text`, `image`, `digest` (of the image) and `other` columns of a document."""


class OpenSegment:
    """The files of a segment, open."""

    def __init__(self, directory: Path, spec: Segment) -> None:
        self.spec = spec
        self._path = directory / spec.name
        with _allowing_files(self._path):
            self._open_all(directory)

    def _open_all(self, directory: Path) -> None:
        spec = self.spec
        self.rows = np.fromfile(directory / f"{spec.name}.rows", ROW)
        ids = np.ascontiguousarray(self.rows["id"])
        self.ties = ids.view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
        """What orders documents of equal scores, wherever they are."""
        self.alive = np.ones(spec.rows, bool)
        if spec.dead:
            self.alive[np.fromfile(directory / spec.dead, "<u4")] = False
        self._vectors, self._documents = (
            self._open(directory / f"{spec.name}.{kind}") for kind in ("vectors", "documents")
        )

    def vectors(self, start: int, stop: int, size: int) -> NDArray[np.float16]:
        """Some of its vectors (N, D)."""
        data = self._read(self._vectors, 2 * size * start, 2 * size * (stop - start))
        return np.frombuffer(data, np.float16).reshape(-1, size)

    def blocks(self, size: int, first: int = 0) -> Iterator[Block]:
        """All of it; `first` is the place of its first row, `size` D."""
        for start in range(0, self.spec.rows, BLOCK):
            stop = min(start + BLOCK, self.spec.rows)
            alive = self.alive[start:stop]
            yield Block(
                self.vectors(start, stop, size),
                None if alive.all() else alive,
                self.ties[start:stop],
                np.arange(first + start, first + stop),
            )

    def gather(self, rows: NDArray[np.int64], size: int) -> NDArray[np.float16]:
        """The vectors (N, D) of some rows."""
        data = [self._read(self._vectors, 2 * size * row, 2 * size) for row in rows.tolist()]
        return np.frombuffer(b"".join(data), np.float16).reshape(-1, size)

    def record(self, row: int) -> Record:
        """The document of a row."""
        record: Record = json.loads(self.line(row))
        return record

    def line(self, row: int) -> bytes:
        """The same as it is written."""
        start = int(self.rows["start"][row])
        is_last = row + 1 == self.spec.rows
        stop = os.fstat(self._documents).st_size if is_last else int(self.rows["start"][row + 1])
        return self._read(self._documents, start, stop - start)

    def _read(self, descriptor: int, start: int, size: int) -> bytes:
        """By `pread`: mapped pages count as memory, and a network that fails would end the process
        where this is an error."""
        try:
            data = os.pread(descriptor, size, start)
        except OSError as error:
            raise StorageError(
                f"{self._path}: {error.strerror}. Run the same command again."
            ) from None
        if len(data) != size:
            raise StorageError(f"{self._path} was cut short while it was read.")
        return data

    def _open(self, file: Path) -> int:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise MissingError(f"{file} is gone. {AGAIN}") from None
        weakref.finalize(self, os.close, descriptor)
        return descriptor


@contextmanager
def _allowing_files(path: Path) -> Iterator[None]:
    """Lets this process have OPEN_FILES files open, or as many as the system allows. Raises
    StorageError where these are too few."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    most = OPEN_FILES if hard == RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != RLIM_INFINITY and soft < most:
        setrlimit(RLIMIT_NOFILE, (most, hard))
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise StorageError(
            f"{path}: this process may have {max(soft, most):,} files open, and a corpus needs two "
            f"for each of its segments. Allow more (`ulimit -n {OPEN_FILES}`; beyond the hard "
            "limit, who runs the machine can), then run the same command again."
        ) from None
