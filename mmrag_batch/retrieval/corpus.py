"""A corpus that is read: one manifest of it, whatever becomes of the folder meanwhile."""

import json
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.bundle import hash_each
from mmrag_batch.errors import MissingError, StorageError
from mmrag_batch.retrieval.approximate import ApproximateIndex, read_index
from mmrag_batch.retrieval.corpus_manifest import Segment, read_corpus
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.search import Best, Block, Nearest, scan

ROW = np.dtype([("id", "S16"), ("content", "S16"), ("start", "<u8")])
"""Of a document: hashes of its id and of all that it is; where its record starts."""
BLOCK = 8192
"""Documents that are multiplied at once: 32 MiB at 1,024 dimensions."""
TRIES = 5
Record = dict[str, Any]
"""`id`, `text`, `image`, `digest` (of the image) and `other` columns of a document."""


class Corpus:
    """The documents of the corpus in `directory`, each at a place from 0. Where it has an
    approximate index, that is searched by `threads`; None: one for each core.

    Every file is hashed when it is opened. Raises what `read_corpus` does, MissingError for files
    that are gone or not what they were, StorageError where the disk fails, UnavailableError for an
    approximate index without faiss.
    """

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        for attempt in range(TRIES):
            self.manifest = read_corpus(directory)
            try:
                check_files(directory, self.manifest.files())
                self._first = np.cumsum([0, *(one.rows for one in self.manifest.segments)])
                self._segments = [OpenSegment(directory, one) for one in self.manifest.segments]
                self._approximate = self._open_approximate(directory, threads)
                break
            except MissingError:
                # It was indexed again since, and files of before were removed.
                if attempt + 1 == TRIES or read_corpus(directory) == self.manifest:
                    raise

    def __len__(self) -> int:
        return self.manifest.documents

    def search(self, questions: Floats, count: int) -> Nearest:
        """The best `count` documents for each of `questions` (Q, D), which are unit vectors."""
        best = Best(len(questions), count)
        if self._approximate is not None:
            self._approximate.add_best(questions, best)
        scan(self._blocks(), questions, best)
        return best.nearest()

    def read(self, place: int) -> Record:
        """The document at a place."""
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        return self._segments[number].record(place - int(self._first[number]))

    def _blocks(self) -> Iterator[Block]:
        """Of the segments that an approximate index does not cover."""
        covers = self.manifest.approximate.covers if self.manifest.approximate else {}
        for first, segment in zip(self._first, self._segments):
            if segment.spec.name not in covers:
                yield from segment.blocks(self.manifest.models.size, int(first))

    def _open_approximate(self, directory: Path, threads: int | None) -> ApproximateIndex | None:
        spec = self.manifest.approximate
        if spec is None:
            return None
        names = [one.spec.name for one in self._segments]
        segments, places = dict(zip(names, self._segments)), dict(zip(names, self._first.tolist()))
        index = read_index(directory / spec.name)
        opened = ApproximateIndex(index, spec.covers, segments, places, threads=threads)
        opened.probes = spec.probes
        return opened


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

    def blocks(self, size: int, first: int = 0) -> Iterator[Block]:
        """All of it; `first` is the place of its first row, `size` D."""
        for start in range(0, self.spec.rows, BLOCK):
            stop = min(start + BLOCK, self.spec.rows)
            yield Block(
                self.vectors(start, stop, size),
                None if self.all_alive else self.alive[start:stop],
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


def is_whole(directory: Path, files: Mapping[str, str]) -> bool:
    """Whether each file (its name, its SHA-256) is what it was."""
    with suppress(MissingError):
        check_files(directory, iter(files.items()))
        return True
    return False
