"""Embeddings by the hash of what was embedded, the least recently used forgotten first."""

from collections import OrderedDict
from typing import Protocol

import numpy as np

from mmrag_batch.retrieval.preprocess import Floats


class Cache(Protocol):
    """Where embeddings are looked up before they are computed."""

    def get(self, key: str) -> Floats | None:
        """A copy of the embedding (D,) kept under `key`, or None."""
        ...

    def put(self, key: str, embedding: Floats) -> None:
        """Keep an embedding (D,) under `key`."""
        ...


class EmbeddingCache:
    """Holds at most `capacity` embeddings of `size` dimensions.

    All of its memory is taken at the start: a long run needs no more than a short one.
    """

    def __init__(self, capacity: int, size: int) -> None:
        # Written to at once, for the system gives memory only to what has been written.
        self._embeddings = np.full((capacity, size), np.nan, np.float32)
        self._rows: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Floats | None:
        """A copy of the embedding (D,) kept under `key`, or None."""
        row = self._rows.get(key)
        if row is None:
            return None
        self._rows.move_to_end(key)
        embedding: Floats = self._embeddings[row].copy()
        return embedding

    def put(self, key: str, embedding: Floats) -> None:
        """Keep an embedding (D,) under `key`."""
        row = self._rows.pop(key, len(self._rows))
        if row == len(self._embeddings):
            _, row = self._rows.popitem(last=False)
        self._embeddings[row] = embedding
        self._rows[key] = row
