"""The frozen encoders as ONNX graphs: images and texts -> embeddings."""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.machine import cores
from mmrag_batch.retrieval.preprocess import (
    Floats,
    Ids,
    clean_text,
    open_tokenizer,
    preprocess_image,
    tokenize,
)
from mmrag_batch.retrieval.sessions import Device, is_scaled_by_row, open_session, run_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL.Image import Image

log = logging.getLogger(__name__)
IMAGE_BATCH = 16
"""Most pictures of a batch."""
TOKEN_BUDGET = 4096
"""Most tokens of a text batch, padding included."""
PADDED, WORTH = 1.25, 256
"""On a CPU, a text so many times as long as a batch's shortest begins another, once that has so
many tokens. A GPU is better off with few batches."""


class Encoder:
    """The image and the text encoder of a retriever directory.

    Embeddings are float32 unit vectors of `spec.embedding_size` dimensions. They depend on the
    image or the text alone, not on what else is encoded with it.
    """

    def __init__(
        self,
        directory: Path,
        spec: RetrieverSpec,
        *,
        device: Device,
        threads: int | None = None,
    ) -> None:
        self.embedding_size = spec.embedding_size
        self._spec = spec
        self._tokenizer = open_tokenizer(
            directory / "tokenizer.json", spec.context_length, pad=spec.pad_texts
        )
        self._image = open_session(directory / "image_encoder.onnx", device=device, threads=threads)
        self._text = open_session(directory / "text_encoder.onnx", device=device, threads=threads)
        # On a CPU, what a picture's layers pass on stays in the cache of the core that computes it.
        on_cpu = min(IMAGE_BATCH, threads or cores())
        self._image_batch = on_cpu if device == "cpu" else IMAGE_BATCH
        self._padded = PADDED if device == "cpu" else spec.context_length
        if spec.precision == "int8" and not all(map(is_scaled_by_row, (self._image, self._text))):
            log.warning(
                "The int8 encoders of %s have one scale for a whole batch: evidence may change "
                "with the rows that are encoded together, so a run that was stopped may differ "
                "from another. Export them again: mmrag-batch export encoders --precision int8",
                directory,
            )

    def encode_images(self, images: Iterable["Image"]) -> Floats:
        """RGB images -> (N, D). Takes a batch of images at a time from `images`."""
        pixels = map(self.pixels, images)
        embeddings = [np.empty((0, self.embedding_size), np.float32)]
        while batch := list(islice(pixels, self._image_batch)):
            embeddings.append(self._run(self._image, "pixels", np.stack(batch)))
        return np.concatenate(embeddings)

    def _run(self, session: "InferenceSession", name: str, items: NDArray[Any]) -> Floats:
        return run_session(session, {name: items}, size=self.embedding_size)

    def pixels(self, image: "Image") -> Floats:
        """An RGB image -> what the image encoder reads, (3, S, S)."""
        spec = self._spec
        return preprocess_image(
            image, spec.image_size, spec.image_mean, spec.image_std, spec.framing, spec.resample
        )

    def tokens(self, texts: Sequence[str]) -> Ids:
        """Texts -> what the text encoder reads, (B, L)."""
        if self._spec.clean_texts:
            texts = [clean_text(text) for text in texts]
        return tokenize(self._tokenizer, texts)

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Texts -> (N, D), in batches of similar length so that little is padded."""
        embeddings = np.empty((len(texts), self.embedding_size), np.float32)
        tokens = self.tokens(texts)
        if self._spec.pad_texts:
            lengths = np.full(len(texts), tokens.shape[1])
        else:
            lengths = tokens.argmax(axis=1) + 1  # up to the end token, which has the highest id
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= TOKEN_BUDGET:
                longest, shortest = lengths[order[stop]], lengths[order[start]]
                if longest > self._padded * shortest and (stop - start) * longest >= WORTH:
                    break
                stop += 1
            rows = order[start:stop]
            batch = tokens[rows, : lengths[rows[-1]]]
            embeddings[rows] = self._run(self._text, "tokens", np.ascontiguousarray(batch))
            start = stop
        return embeddings
