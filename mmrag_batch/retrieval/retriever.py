"""The retrieval stage: which of a row's own documents help to answer its question."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.records import Evidence, Row
from mmrag_batch.retrieval.cache import EmbeddingCache
from mmrag_batch.retrieval.embedder import EmbeddedRow, Embedder, Embedding
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.sessions import Device, open_session, run_session
from mmrag_batch.retrieval.store import EmbeddingStore, StoredCache
from mmrag_batch.stages import ImageStore

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

WINDOW = 32
"""Rows whose contents are encoded together."""
CACHED_EMBEDDINGS = 16_384
"""64 MiB at ImageBind's 1024 dimensions."""


class Towers:
    """The question and the document tower of a retriever directory."""

    def __init__(self, directory: Path, *, device: Device, threads: int | None = None) -> None:
        self._question, self._document = (
            open_session(directory / f"{side}_tower.onnx", device=device, threads=threads)
            for side in ("question", "document")
        )

    def questions(self, embeddings: Sequence[Embedding]) -> Floats:
        """(N, D) unit vectors of questions."""
        return _run(self._question, embeddings)

    def documents(self, embeddings: Sequence[Embedding]) -> Floats:
        """(N, D) unit vectors of documents."""
        return _run(self._document, embeddings)


class Retriever:
    """Keeps the `top_k` best documents of each row as its evidence, best first.

    The score is the cosine of the question's and the document's vector times the learned
    temperature; of equal documents the earlier comes first. A row with fewer documents keeps all.
    """

    def __init__(
        self, embedder: Embedder, towers: Towers, *, top_k: int, temperature: float
    ) -> None:
        self._embedder = embedder
        self._towers = towers
        self._top_k = top_k
        self._temperature = temperature
        self.window = WINDOW

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        source = iter(rows)
        while window := list(islice(source, self.window)):
            embedded = self._embedder.embed(window)
            found = [(row, item) for row, item in zip(window, embedded) if item is not None]
            self._rank(found)
            yield from window

    def _rank(self, found: Sequence[tuple[Row, EmbeddedRow]]) -> None:
        if not found:
            return
        questions = self._towers.questions([item.question for _, item in found])
        candidates = [candidate for _, item in found for candidate in item.candidates]
        documents = self._towers.documents(candidates) if candidates else questions[:0]
        start = 0
        for question, (row, item) in zip(questions, found):
            stop = start + len(item.candidates)
            # Summed row by row: equal documents score equally, wherever they stand.
            scores = (documents[start:stop] * question).sum(axis=1) * self._temperature
            best = np.argsort(-scores, kind="stable")[: self._top_k]
            row.evidence = tuple(Evidence(item.documents[i], float(scores[i])) for i in best)
            start = stop


def open_embedder(
    directory: Path,
    spec: RetrieverSpec,
    images: ImageStore,
    *,
    device: Device,
    threads: int | None = None,
    store: Path | None = None,
) -> Embedder:
    """The frozen encoders of a retriever directory, with a cache in memory and, where `store` names
    the folder of these very encoders, on disk."""
    encoder = Encoder(directory, spec, device=device, threads=threads)
    memory = EmbeddingCache(CACHED_EMBEDDINGS, spec.embedding_size)
    if store is None:
        return Embedder(encoder, memory, images)
    cache = StoredCache(memory, EmbeddingStore(store, spec.embedding_size))
    return Embedder(encoder, cache, images)


def open_retriever(
    directory: Path,
    spec: RetrieverSpec,
    images: ImageStore,
    *,
    top_k: int,
    device: Device,
    threads: int | None = None,
    store: Path | None = None,
) -> Retriever:
    """The retrieval stage of a retriever directory; `store` as in `open_embedder`."""
    embedder = open_embedder(directory, spec, images, device=device, threads=threads, store=store)
    towers = Towers(directory, device=device, threads=threads)
    return Retriever(embedder, towers, top_k=top_k, temperature=spec.temperature)


def _run(session: "InferenceSession", embeddings: Sequence[Embedding]) -> Floats:
    inputs = {
        "embeddings": np.stack([item.modalities for item in embeddings]),
        "present": np.stack([item.present for item in embeddings]),
    }
    return run_session(session, inputs)
