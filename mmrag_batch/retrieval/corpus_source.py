"""The second source of candidates: documents of a corpus that all rows share, and a row's own, in
one ranking.

What a corpus finds for a question is known only when it was searched, so an answer has two keys.
Under the first, of the question and the version of the corpus, the run knows which rows have an
answer; it changes with every document that comes or goes. Under the second, of the question and the
evidence that was found, the answer is found again: where a corpus has changed, rows are searched
once more (`run/recall.py`), and those with the same evidence have the answer that they had. Only
the others are asked. So nothing of another corpus is ever taken, and what a corpus costs when it
grows is a search for each row and an answer for those that are better off.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mmrag_batch.bundle import Bundle, read_manifest
from mmrag_batch.errors import ConfigError, RowError
from mmrag_batch.records import Document, Evidence, Found, Problem, Row
from mmrag_batch.retrieval.candidates import Candidates
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import Models, models_of, read_corpus
from mmrag_batch.retrieval.corpus_segment import Record
from mmrag_batch.retrieval.embedder import Embedder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.retriever import WINDOW, Towers, find_store, open_embedder
from mmrag_batch.retrieval.search import Nearest, score
from mmrag_batch.retrieval.sessions import find_device
from mmrag_batch.settings import PredictSettings
from mmrag_batch.sources import CORPUS, CORPUS_FILE, document_problem, is_inline, is_url
from mmrag_batch.stages import ImageStore

LARGE, TOGETHER = 65_536, 256
"""From so many documents on, so many rows share a pass over their vectors."""


class Searcher(Protocol):
    """Documents that all rows share: how many there are, and the `version` of those that were
    searched last."""

    @property
    def version(self) -> str: ...

    def __len__(self) -> int: ...

    def search(self, questions: Floats, count: int, /) -> Nearest:
        """The best `count` for each of `questions` (Q, D), by `search.score`."""
        ...

    def read(self, place: int, /) -> Record:
        """The document at a place that the last search gave."""
        ...


class CorpusDocuments:
    """Documents of a corpus, called `corpus:` and their id, and a row's own, called by their id;
    one of these that begins like that is an error of its row.

    The score is as for a row's own documents, whose vectors are rounded as those of the corpus are,
    so that equal documents score equally. Of these the row's own come first.
    """

    def __init__(
        self,
        embedder: Embedder,
        towers: Towers,
        corpus: Searcher,
        images: ImageStore,
        *,
        top_k: int,
        temperature: float,
    ) -> None:
        self._embedder, self._towers = embedder, towers
        self._corpus, self._images = corpus, images
        self._top_k, self._temperature = top_k, temperature
        self.window = TOGETHER if len(corpus) >= LARGE else WINDOW

    def find(self, rows: Sequence[Row], /) -> list[tuple[Evidence, ...]]:
        """The `top_k` best for each row."""
        for row in rows:
            _check_ids(row)
        embedded = self._embedder.embed(rows, bare=True)
        questions = [item.question for item in embedded if item is not None]
        if not questions:
            return [()] * len(rows)
        vectors = self._towers.questions(questions)
        nearest = self._corpus.search(vectors, self._top_k)
        candidates = [one for item in embedded if item is not None for one in item.candidates]
        own = vectors[:0]
        if candidates:
            own = self._towers.documents(candidates).astype(np.float16).astype(np.float32)
        results: list[tuple[Evidence, ...]] = []
        at = start = 0
        for row, item in zip(rows, embedded):
            if item is None:
                results.append(())
                continue
            stop = start + len(item.documents)
            scores = [*score(own[start:stop], vectors[at]), *nearest.scores[at]]
            documents = [*item.documents, *nearest.places[at]]
            results.append(self._rank(row, np.array(scores, np.float32), documents))
            at, start = at + 1, stop
        return results

    def _rank(
        self, row: Row, scores: Floats, documents: Sequence[Document | int]
    ) -> tuple[Evidence, ...]:
        """The best of a row's own documents, and of those at places of the corpus, -1 for none."""
        evidence: list[Evidence] = []
        means: list[object] = []
        scores = scores * np.float32(self._temperature)
        for index in np.argsort(-scores, kind="stable")[: self._top_k]:
            document, digest = documents[index], None
            if not isinstance(document, Document):
                if document < 0:
                    continue
                read = self._read(int(document), row)
                if read is None:
                    continue
                document, digest = read
            evidence.append(Evidence(document, float(scores[index])))
            means.append([document.id, document.text, document.image, digest])
        means += [[problem.code, problem.message] for problem in row.problems]
        hashed = hashlib.sha256(json.dumps(means).encode()).hexdigest()
        row.found = Found(self._corpus.version, hashed)
        return tuple(evidence)

    def _read(self, place: int, row: Row) -> tuple[Document, str | None] | None:
        """A document of the corpus, and the digest of its image; None for one whose image is not
        what it was, which the row is told."""
        record = self._corpus.read(place)
        document, digest = document_of(record), record["digest"]
        try:
            here = self._images.digest(document.image) if document.image else None
            if here != (digest or here):
                what = f"{record['image']!r} is not what it was when it was indexed"
                raise RowError("image_changed", f"{what}; run `mmrag-batch index` again")
        except RowError as error:
            row.problems.append(document_problem(document, error))
            return None
        return document, here


def document_of(record: Record) -> Document:
    """What a document of a corpus is called beside a row's own."""
    image = record["image"]
    if image is not None and not is_inline(image) and not is_url(image):
        image = CORPUS_FILE + image
    return Document(CORPUS + record["id"], record["text"], image)


def _check_ids(row: Row) -> None:
    """Let a row have an error whose own documents are called as those of a corpus are."""
    if row.error is None and row.question is not None:
        for document in row.question.documents:
            if document.id.startswith(CORPUS):
                what = f"document {document.id!r}: ids that begin with {CORPUS!r} are a corpus'"
                row.error = Problem("bad_documents", what)


def open_corpus(
    settings: PredictSettings, bundle: Bundle, images: ImageStore, threads: int | None
) -> Candidates:
    """The corpus of these settings, to be searched with a bundle's retriever."""
    find_version(settings)
    assert settings.corpus is not None  # that has seen to it
    return open_documents(settings, bundle, images, threads, Corpus(settings.corpus, threads))


def open_documents(
    settings: PredictSettings,
    bundle: Bundle,
    images: ImageStore,
    threads: int | None,
    corpus: Searcher,
) -> CorpusDocuments:
    """The same of any documents that the bundle's models have made vectors of."""
    spec, directory = bundle.manifest.retriever, bundle.retriever_dir
    assert spec is not None  # or it had made none
    device, store = find_device(settings.device), find_store(settings, bundle, spec)
    return CorpusDocuments(
        open_embedder(directory, spec, images, device=device, threads=threads, store=store),
        Towers(directory, device=device, threads=threads),
        corpus,
        images,
        top_k=bundle.manifest.generator.top_k if settings.top_k is None else settings.top_k,
        temperature=spec.temperature,
    )


def find_version(settings: PredictSettings) -> str:
    """The version of the corpus. Raises ConfigError where none is named, or it was made with other
    models than the bundle's, and what `read_corpus` does."""
    if settings.corpus is None:
        raise ConfigError("--candidates corpus: name one, with `--corpus DIR`.")
    models = find_models(settings.bundle)
    manifest = read_corpus(settings.corpus)
    if manifest.models != models:
        raise ConfigError(
            f"{settings.corpus} was made with other models than those of {settings.bundle}: index "
            f"it again, `mmrag-batch index DOCS {settings.corpus} --bundle {settings.bundle}`."
        )
    return manifest.version


def find_models(bundle: Path) -> Models:
    """What a bundle makes vectors with. Raises ConfigError where it has no retriever."""
    models = models_of(read_manifest(bundle))
    if models is None:
        raise ConfigError(f"{bundle} has no retriever, which --corpus needs.")
    return models
