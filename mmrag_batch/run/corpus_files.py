"""The files of one segment of a corpus, while they are written."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.retrieval.approximate import build_index
from mmrag_batch.retrieval.corpus_manifest import Approximate, Segment
from mmrag_batch.retrieval.corpus_segment import OpenSegment

BUFFER = 2**20
UNINDEXED = 1 / 16
"""As many documents for each of an approximate index are searched exactly beside it."""


class SegmentFiles:
    """A new segment in `directory`, written document by document."""

    def __init__(self, directory: Path) -> None:
        self._name = uuid4().hex
        self._files: dict[str, _HashedFile] = {}
        self.rows = 0
        try:
            for kind in ("vectors", "rows", "documents"):
                self._files[kind] = _HashedFile(directory / f"{self._name}.{kind}")
        except BaseException:
            self.discard()
            raise

    def add(self, name: bytes, content: bytes, line: bytes, vector: bytes) -> None:
        """A document: hashes of its id and content, its record, its vector."""
        start = self._files["documents"].size
        self._files["vectors"].write(vector)
        self._files["rows"].write(name + content + start.to_bytes(8, "little"))  # as ROW
        self._files["documents"].write(line)
        self.rows += 1

    def discard(self) -> None:
        """Give the segment up; who writes next removes its files."""
        for file in self._files.values():
            with suppress(OSError):  # what is still to be written, to a disk that is full
                file.stream.close()

    def close(self) -> Segment:
        """Wait until all of it is on disk."""
        files = {file.path.name: file.close() for file in self._files.values()}
        return Segment(self._name, self.rows, "", files)


class _HashedFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.stream = path.open("xb", buffering=BUFFER)
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self.stream.write(data)
        self.size += len(data)

    def close(self) -> str:
        with self.stream:
            self.stream.flush()
            os.fsync(self.stream.fileno())
        return self._digest.hexdigest()


def write_dead(directory: Path, segment: Segment, alive: NDArray[np.bool_]) -> Segment:
    """The segment with a new file that says which of its rows are dead, which is on disk."""
    file = _HashedFile(directory / f"{uuid4().hex}.dead")
    file.write(np.nonzero(~alive)[0].astype("<u4").tobytes())
    files = {name: digest for name, digest in segment.files.items() if name != segment.dead}
    files[file.path.name] = file.close()
    return Segment(segment.name, segment.rows, file.path.name, files)


def still_serves(
    index: Approximate, segments: Sequence[OpenSegment], room: int, alive: float
) -> bool:
    """Whether at least the share `alive` of an approximate index counts, and what it lacks, `room`
    documents or a few for each of its own, is soon searched exactly."""
    live = {segment.spec.name: int(segment.alive.sum()) for segment in segments}
    inside = sum(count for name, count in live.items() if name in index.covers)
    outside = sum(live.values()) - inside
    is_alive = inside >= alive * sum(index.covers.values())
    return is_alive and outside <= max(room, UNINDEXED * inside)


def write_approximate(directory: Path, segments: Sequence[OpenSegment], size: int) -> Approximate:
    """An approximate index of segments, of vectors of `size` dimensions, which is on disk."""
    file = _HashedFile(directory / f"{uuid4().hex}.faiss")
    named = {segment.spec.name: segment for segment in segments}
    try:
        probes, recall = build_index(named, size, file.write)
    except BaseException:
        with suppress(OSError):
            file.stream.close()
        raise
    covers = {name: segment.spec.rows for name, segment in named.items()}
    return Approximate(file.path.name, file.close(), covers, probes, recall)
