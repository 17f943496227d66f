"""Embeddings on disk by the hash of what was embedded, shared by runs, shards and training.

    <32 hex digits>.vectors     embeddings, float32, one after another
    <32 hex digits>.keys        for each of them: SHA-256 of its key, CRC-32 of both

A process writes to files of its own, first the embedding, then its key, so no locks are needed and
a process that is killed leaves whole entries behind. What others have written is mapped when a
store is opened: a million embeddings take 50 MB of memory, not four billion bytes.
"""

import hashlib
import logging
import os
import weakref
import zlib
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.retrieval.cache import EmbeddingCache
from mmrag_batch.retrieval.preprocess import Floats

log = logging.getLogger(__name__)

KEY = np.dtype([("start", ">u8"), ("rest", "V24"), ("crc", "<u4")])
"""An entry of a `.keys` file: it starts with the 32 bytes of a hash."""


class EmbeddingStore:
    """Embeddings (D,) of one pair of encoders in one folder.

    A folder that cannot be written to, or an entry that is damaged, is warned of once; what is not
    found is simply computed again.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._size = size
        self._warned = False
        self._writable = True
        self._files: tuple[int, int] | None = None
        """Descriptors of the vectors and the keys that this process writes."""
        self._own_rows: dict[bytes, int] = {}
        """Hash -> row in the files that this process writes."""
        segments = list(self._map_segments())
        self._vectors = [vectors for vectors, _ in segments]
        self._keys = [keys for _, keys in segments]
        self._first_entries = np.cumsum([0, *map(len, self._keys)])
        starts = [keys["start"] for keys in self._keys]
        entry_starts = np.concatenate([np.empty(0, np.uint64), *starts]).astype(np.uint64)
        self._order = np.argsort(entry_starts, kind="stable")
        self._starts = entry_starts[self._order]

    def __len__(self) -> int:
        return len(self._starts) + len(self._own_rows)

    def get(self, key: str) -> Floats | None:
        """A copy of the embedding (D,) kept under `key`, or None."""
        digest = _digest(key)
        row = self._own_rows.get(digest)
        if row is not None:
            assert self._files is not None  # what is our own has been written
            data = os.pread(self._files[0], 4 * self._size, row * 4 * self._size)
            return np.frombuffer(data, np.float32).copy()
        start = np.uint64(int.from_bytes(digest[:8]))
        position = int(np.searchsorted(self._starts, start))
        while position < len(self._starts) and self._starts[position] == start:
            embedding = self._read(int(self._order[position]), digest)
            if embedding is not None:
                return embedding
            position += 1
        return None

    def put(self, key: str, embedding: Floats) -> None:
        """Keep an embedding (D,) under `key`."""
        digest = _digest(key)
        if not self._writable or digest in self._own_rows:
            return
        data = np.ascontiguousarray(embedding, np.float32).tobytes()
        crc = zlib.crc32(data, zlib.crc32(digest))
        try:
            vectors, keys = self._open_files()
            _write(vectors, data)
            _write(keys, digest + crc.to_bytes(4, "little"))
        except OSError as error:
            self._writable = False  # a torn entry stays the last one
            self._warn(f"cannot be written ({error.strerror}); what is new is not kept")
            return
        self._own_rows[digest] = len(self._own_rows)

    def _read(self, entry: int, digest: bytes) -> Floats | None:
        """The embedding of an entry, if it is that of `digest` and whole."""
        segment = int(np.searchsorted(self._first_entries, entry, side="right")) - 1
        row = entry - int(self._first_entries[segment])
        key = self._keys[segment][row]
        if key.tobytes()[:32] != digest:
            return None
        embedding = np.array(self._vectors[segment][row])
        if zlib.crc32(embedding.tobytes(), zlib.crc32(digest)) != key["crc"]:
            self._warn("has a damaged entry; it is computed again")
            return None
        return embedding

    def _open_files(self) -> tuple[int, int]:
        if self._files is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            stem = self._directory / uuid4().hex
            self._files = (
                self._create(stem.with_suffix(".vectors")),
                self._create(stem.with_suffix(".keys")),
            )
        return self._files

    def _create(self, file: Path) -> int:
        """A new file to read and write, closed when the store is no longer used."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(file, flags, 0o666)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _map_segments(self) -> list[tuple[Floats, NDArray[np.void]]]:
        """The vectors (N, D) and keys (N,) of each pair of files; what is torn is cut off."""
        segments: list[tuple[Floats, NDArray[np.void]]] = []
        try:
            for file in sorted(self._directory.glob("*.keys")):
                vectors_file = file.with_suffix(".vectors")
                count = min(
                    file.stat().st_size // KEY.itemsize,
                    vectors_file.stat().st_size // (4 * self._size),
                )
                if count:
                    vectors = np.memmap(vectors_file, np.float32, "r", shape=(count, self._size))
                    segments.append((vectors, np.fromfile(file, KEY, count)))
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror}); embeddings are computed again")
        return segments

    def _warn(self, problem: str) -> None:
        if not self._warned:
            log.warning("The embedding cache %s %s.", self._directory, problem)
        self._warned = True


class StoredCache:
    """A cache in memory over a store: what was found or put there is not read again."""

    def __init__(self, memory: EmbeddingCache, store: EmbeddingStore) -> None:
        self._memory = memory
        self._store = store

    def get(self, key: str) -> Floats | None:
        """A copy of the embedding (D,) kept under `key`, or None."""
        embedding = self._memory.get(key)
        if embedding is None:
            embedding = self._store.get(key)
            if embedding is not None:
                self._memory.put(key, embedding)
        return embedding

    def put(self, key: str, embedding: Floats) -> None:
        """Keep an embedding (D,) under `key`."""
        self._memory.put(key, embedding)
        self._store.put(key, embedding)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _write(descriptor: int, data: bytes) -> None:
    written_bytes = os.write(descriptor, data)
    if written_bytes != len(data):  # a disk that has just become full takes a part
        raise OSError(0, "the disk is full")
