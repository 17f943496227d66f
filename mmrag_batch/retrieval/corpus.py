"""A corpus that is read: one manifest of it, whatever becomes of the folder meanwhile."""

import json
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.bundle import hash_each
from mmrag_batch.errors import MissingError, StorageError
from mmrag_batch.retrieval.corpus_manifest import Segment, read_corpus
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.search import Block, Nearest, find_nearest

ROW = np.dtype([("id", "S16"), ("content", "S16"), ("start", "<u8")])
"""Of a document: hashes of its id and of all that it is; where its record starts."""
BLOCK = 8192
"""Documents that are multiplied at once: 32 MiB at 1,024 dimensions."""
TRIES = 5
Record = dict[str, Any]
"""`id`, `text`, `image`, `digest` (of the image) and `other` columns of a document."""


class Corpus:
    """The documents of the corpus in `directory`, each at a place from 0.

    Every file is hashed when it is opened. Raises what `read_corpus` does, MissingError for files
    that are gone or not what they were, StorageError where the disk fails.
    """

    def __init__(self, directory: Path) -> None:
        for attempt in range(TRIES):
            self.manifest = read_corpus(directory)
            try:
                check_files(directory, self.manifest.files())
                self._segments = [OpenSegment(directory, one) for one in self.manifest.segments]
                break
            except MissingError:
                # It was indexed again since, and files of before were removed.
                if attempt + 1 == TRIES or read_corpus(directory) == self.manifest:
                    raise
        self._first = np.cumsum([0, *(one.rows for one in self.manifest.segments)])

    def __len__(self) -> int:
        return self.manifest.documents

    def search(self, questions: Floats, count: int) -> Nearest:
        """The best `count` documents for each of `questions` (Q, D), which are unit vectors."""
        return find_nearest(self._blocks(), questions, count)

    def read(self, place: int) -> Record:
        """The document at a place."""
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        return self._segments[number].record(place - int(self._first[number]))

    def _blocks(self) -> Iterator[Block]:
        for first, segment in zip(self._first, self._segments):
            for start in range(0, segment.spec.rows, BLOCK):
                stop = min(start + BLOCK, segment.spec.rows)
                yield Block(
                    segment.vectors(start, stop, self.manifest.models.size),
                    None if segment.all_alive else segment.alive[start:stop],
                    segment.ties[start:stop],
                    np.arange(first + start, first + stop),
                )


class OpenSegment:
    """The files of a segment, open."""

    def __init__(self, directory: Path, spec: Segment) -> None:
        self.spec = spec
        self.rows = np.fromfile(directory / f"{spec.name}.rows", ROW)
        ids = np.ascontiguousarray(self.rows["id"])
        self.ties = ids.view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
        """What orders documents of equal scores, wherever they are."""
        self.alive = np.ones(spec.rows, bool)
        if spec.dead:
            self.alive[np.fromfile(directory / spec.dead, "<u4")] = False
        self.all_alive = not spec.dead
        self._vectors, self._documents = (
            self._open(directory / f"{spec.name}.{kind}") for kind in ("vectors", "documents")
        )
        self._path = directory / spec.name

    def vectors(self, start: int, stop: int, size: int) -> NDArray[np.float16]:
        """Some of its vectors (N, D)."""
        data = self._read(self._vectors, 2 * size * start, 2 * size * (stop - start))
        return np.frombuffer(data, np.float16).reshape(-1, size)

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


AGAIN = "`mmrag-batch index` makes again what is damaged, with the command that made the corpus."


def check_files(directory: Path, files: Iterator[tuple[str, str]]) -> None:
    """Raise MissingError unless each file (its name, its SHA-256) is what it was."""
    names = dict(files)
    paths = [directory / name for name in names]
    try:
        digests = hash_each(paths, f"Checking {directory}")
    except FileNotFoundError as error:
        raise MissingError(f"{error.filename} is gone. {AGAIN}") from None
    for path, digest in zip(paths, digests):
        if digest != names[path.name]:
            raise MissingError(f"{path} is damaged. {AGAIN}")


def is_whole(directory: Path, segment: Segment) -> bool:
    """Whether every file of a segment is what it was."""
    with suppress(MissingError):
        check_files(directory, iter(segment.files.items()))
        return True
    return False
