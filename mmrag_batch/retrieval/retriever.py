"""The retrieval stage, and the first source of candidates: which of a row's own documents help to
answer its question."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmrag_batch.bundle import Bundle, RetrieverSpec, encoders_key
from mmrag_batch.errors import MissingError
from mmrag_batch.records import Evidence, Row
from mmrag_batch.retrieval.cache import EmbeddingCache
from mmrag_batch.retrieval.candidates import Candidates, digest_files
from mmrag_batch.retrieval.embedder import EmbeddedRow, Embedder, Embedding
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.sessions import Device, find_device, open_session, run_session
from mmrag_batch.retrieval.store import EmbeddingStore, StoredCache
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import ImageStore, in_batches

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


class RowDocuments:
    """A row's own documents.

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

    def find(self, rows: Sequence[Row], /) -> list[tuple[Evidence, ...]]:
        """The `top_k` best of each row."""
        embedded_rows = self._embedder.embed(rows)
        readable_rows = [item for item in embedded_rows if item is not None]
        ranked = iter(self._rank(readable_rows) if readable_rows else ())
        return [() if item is None else next(ranked) for item in embedded_rows]

    def _rank(self, rows: Sequence[EmbeddedRow]) -> Iterator[tuple[Evidence, ...]]:
        questions = self._towers.questions([item.question for item in rows])
        candidates = [candidate for item in rows for candidate in item.candidates]
        documents = self._towers.documents(candidates) if candidates else questions[:0]
        start = 0
        for question, item in zip(questions, rows):
            stop = start + len(item.candidates)
            # Summed row by row: equal documents score equally, wherever they stand.
            scores = (documents[start:stop] * question).sum(axis=1) * self._temperature
            top_indices = np.argsort(-scores, kind="stable")[: self._top_k]
            yield tuple(Evidence(item.documents[i], float(scores[i])) for i in top_indices)
            start = stop


class NoDocuments:
    """Of a bundle without a retriever: every row is answered without documents."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    def find(self, rows: Sequence[Row], /) -> list[tuple[Evidence, ...]]:
        """Nothing for any row."""
        for row in rows:
            if row.error is None and row.question is not None:
                row.images = digest_files(row.question, self._images)
        return [()] * len(rows)


class Retriever:
    """The stage: evidence for each row without an error, from where the candidates are."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self.window: int = getattr(candidates, "window", WINDOW)

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        for window in in_batches(rows, self.window):
            for row, evidence in zip(window, self._candidates.find(window), strict=True):
                row.evidence = evidence
            yield from window


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
    """The retrieval stage of a retriever directory, on rows' own documents; `store` as in
    `open_embedder`."""
    embedder = open_embedder(directory, spec, images, device=device, threads=threads, store=store)
    towers = Towers(directory, device=device, threads=threads)
    return Retriever(RowDocuments(embedder, towers, top_k=top_k, temperature=spec.temperature))


def open_row_documents(
    settings: PredictSettings, bundle: Bundle, images: ImageStore, threads: int | None
) -> Candidates:
    """The documents that stand in the rows themselves, ranked by the bundle's retriever."""
    spec, directory = bundle.manifest.retriever, bundle.retriever_dir
    if spec is None:
        return NoDocuments(images)
    device, store = find_device(settings.device), find_store(settings, bundle, spec)
    embedder = open_embedder(directory, spec, images, device=device, threads=threads, store=store)
    towers = Towers(directory, device=device, threads=threads)
    top_k = bundle.manifest.generator.top_k if settings.top_k is None else settings.top_k
    return RowDocuments(embedder, towers, top_k=top_k, temperature=spec.temperature)


def find_store(settings: PredictSettings, bundle: Bundle, spec: RetrieverSpec) -> Path | None:
    """Where embeddings of the bundle's encoders are kept."""
    if settings.embedding_cache is None:
        return None
    hashes = bundle.manifest.files.items()
    files = {name.removeprefix("retriever/"): digest for name, digest in hashes}
    return settings.embedding_cache / encoders_key(spec, files)


def _run(session: "InferenceSession", embeddings: Sequence[Embedding]) -> Floats:
    inputs = {
        "embeddings": np.stack([item.modalities for item in embeddings]),
        "present": np.stack([item.present for item in embeddings]),
    }
    vectors = run_session(session, inputs, size=inputs["embeddings"].shape[-1])
    if not np.isfinite(vectors).all():
        raise MissingError(
            "A tower of the retriever gives numbers that are not finite; export it again."
        )
    return vectors
