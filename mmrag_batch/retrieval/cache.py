"""Embeddings by the hash of what was embedded, the least recently used forgotten first."""

from collections import OrderedDict

from mmrag_batch.retrieval.preprocess import Floats


class EmbeddingCache:
    """Holds at most `capacity` embeddings."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._embeddings: OrderedDict[str, Floats] = OrderedDict()

    def __len__(self) -> int:
        return len(self._embeddings)

    def get(self, key: str) -> Floats | None:
        """The embedding (D,) kept under `key`, or None."""
        embedding = self._embeddings.get(key)
        if embedding is not None:
            self._embeddings.move_to_end(key)
        return embedding

    def put(self, key: str, embedding: Floats) -> None:
        """Keep a copy of an embedding (D,) under `key`; a view would keep its whole batch alive."""
        self._embeddings[key] = embedding.copy()
        self._embeddings.move_to_end(key)
        if len(self._embeddings) > self._capacity:
            self._embeddings.popitem(last=False)
