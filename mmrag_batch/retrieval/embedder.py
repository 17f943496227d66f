"""Rows -> the frozen embeddings of their questions and documents, each content encoded once."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmrag_batch.errors import RowError
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Document, Problem, Question, Row
from mmrag_batch.retrieval.cache import Cache
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.sources import document_problem, image_files
from mmrag_batch.stages import ImageStore

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = "image:"
"""What the key of an image begins with."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """What one side has.

    `modalities` (2, D): the embedding of its image and of its text, zeros where absent; `present`
    (2,): 1 where present.
    """

    modalities: Floats
    present: Floats


@dataclass(frozen=True, slots=True)
class EmbeddedRow:
    """A row's question and those of its documents, and pages of them, that can be read."""

    question: Embedding
    documents: tuple[Document, ...]
    candidates: tuple[Embedding, ...]


@dataclass(slots=True)
class _Window:
    """What a window of rows needs. Contents are known by their key, images also by their source."""

    vectors: dict[str, Floats] = field(default_factory=dict)
    """Key -> embedding (D,)."""
    texts: dict[str, str] = field(default_factory=dict)
    """Key -> a text to encode."""
    images: dict[str, str] = field(default_factory=dict)
    """Key -> the source of an image to encode."""
    keys: dict[str, str] = field(default_factory=dict)
    """Source of an image -> key."""
    errors: dict[str, RowError] = field(default_factory=dict)
    """Source or key of an image -> why it cannot be used."""


class Embedder:
    """Embeds windows of rows: what is new is encoded in batches across rows, the rest is known."""

    def __init__(self, encoder: Encoder, cache: Cache, images: ImageStore) -> None:
        self._encoder = encoder
        self._cache = cache
        self._images = images

    def embed(self, rows: Sequence[Row], *, bare: bool = False) -> list[EmbeddedRow | None]:
        """One entry a row; None for one without documents, unless `bare` ones are embedded as well,
        or with an error, which it may now get.

        A question with a broken image becomes a row error. A document with a broken image is left
        out and noted in `row.problems`. A PDF is as many documents as it has pages. The digests of
        a row's image files go to `row.images`.
        """
        window = _Window()
        questions = [self._collect_row(window, row, bare=bare) for row in rows]
        self._encode(window)
        return [self._assemble(window, *asked, bare=bare) for asked in zip(rows, questions)]

    def embed_documents(self, documents: Sequence[Document]) -> list[Embedding | RowError]:
        """The embedding of each document, none of which is a PDF of several pages, or why there is
        none."""
        window = _Window()
        for document in documents:
            self._collect(window, document.text, document.image)
        self._encode(window)
        results: list[Embedding | RowError] = []
        for document in documents:
            try:
                results.append(self._embedding(window, document.text, document.image))
            except RowError as error:
                results.append(error)
        return results

    def _collect_row(self, window: _Window, row: Row, *, bare: bool) -> Question | None:
        """The question, with the pages of its PDFs, once all that it needs is noted."""
        if row.error is not None or row.question is None:
            return None
        question = with_pages(row.question, self._images)
        if question.documents or bare:
            self._collect(window, question.text, question.image)
        for document in question.documents:
            self._collect(window, document.text, document.image)
        row.images = {file: self._digest(window, file) for file in image_files(row.question)}
        return question

    def _collect(self, window: _Window, text: str | None, image: str | None) -> None:
        """Look both modalities up, or note that they must be encoded."""
        if text is not None:
            key = text_key(text)
            if not self._has_vector(window, key):
                window.texts[key] = text
        if image is not None:
            digest = self._image_key(window, image)
            if digest is not None and not self._has_vector(window, digest):
                window.images.setdefault(digest, image)

    def _image_key(self, window: _Window, source: str) -> str | None:
        """The key of an image, None if it cannot be read; a window reads it once."""
        if source not in window.keys and source not in window.errors:
            try:
                window.keys[source] = IMAGE + self._images.digest(source)
            except RowError as error:
                window.errors[source] = error
        return window.keys.get(source)

    def _digest(self, window: _Window, source: str) -> str | None:
        key = self._image_key(window, source)
        return None if key is None else key.removeprefix(IMAGE)

    def _has_vector(self, window: _Window, key: str) -> bool:
        if key in window.vectors:
            return True
        vector = self._cache.get(key)
        if vector is not None:
            window.vectors[key] = vector
        return vector is not None

    def _encode(self, window: _Window) -> None:
        if window.texts:
            texts = self._encoder.encode_texts(list(window.texts.values()))
            self._keep(window, list(window.texts), texts)
        decoded_keys: list[str] = []
        images = self._encoder.encode_images(self._decode_images(window, decoded_keys))
        self._keep(window, decoded_keys, images)

    def _decode_images(self, window: _Window, decoded_keys: list[str]) -> Iterator["Image"]:
        """Images one by one; the keys of those that could be decoded go to `decoded_keys`."""
        for key, source in window.images.items():
            try:
                image = self._images.load(source)
            except RowError as error:
                window.errors[key] = error
                continue
            decoded_keys.append(key)
            yield image

    def _keep(self, window: _Window, keys: Sequence[str], vectors: Iterable[Floats]) -> None:
        for key, vector in zip(keys, vectors, strict=True):
            window.vectors[key] = vector
            self._cache.put(key, vector)

    def _assemble(
        self, window: _Window, row: Row, question: Question | None, *, bare: bool
    ) -> EmbeddedRow | None:
        if question is None:
            return None
        try:
            if not question.documents and not bare:
                self._raise_error(window, question.image)
                return None
            question_embedding = self._embedding(window, question.text, question.image)
        except RowError as error:
            row.error = Problem(error.code, f"question_image: {error}")
            return None
        documents, candidates = [], []
        for document in question.documents:
            try:
                candidates.append(self._embedding(window, document.text, document.image))
                documents.append(document)
            except RowError as error:
                row.problems.append(document_problem(document, error))
        return EmbeddedRow(question_embedding, tuple(documents), tuple(candidates))

    def _embedding(self, window: _Window, text: str | None, image: str | None) -> Embedding:
        """The embedding of one side. Raises RowError for a broken image, and where an encoder
        makes no numbers of it."""
        modalities = np.zeros((2, self._encoder.embedding_size), np.float32)
        self._raise_error(window, image)
        if image is not None:
            modalities[0] = window.vectors[window.keys[image]]
        if text is not None:
            modalities[1] = window.vectors[text_key(text)]
        if not np.isfinite(modalities).all():
            raise RowError(
                "embedding_failed", "an encoder gives numbers for it that are not finite"
            )
        return Embedding(modalities, np.array([image is not None, text is not None], np.float32))

    def _raise_error(self, window: _Window, image: str | None) -> None:
        for name in (image, window.keys.get(image or "")):
            if name in window.errors:
                raise window.errors[name]


def text_key(text: str) -> str:
    """What a text's embedding is kept under."""
    return "text:" + hashlib.sha256(text.encode()).hexdigest()
