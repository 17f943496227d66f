"""The frozen encoders as ONNX graphs: images and texts -> embeddings."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.retrieval.preprocess import Floats, open_tokenizer, preprocess_image, tokenize
from mmrag_batch.retrieval.sessions import Device, open_session

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_BATCH = 16
TOKEN_BUDGET = 4096
"""Most tokens of a text batch, padding included."""


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
        self._size, self._mean, self._std = spec.image_size, spec.image_mean, spec.image_std
        self._tokenizer = open_tokenizer(directory / "tokenizer.json", spec.context_length)
        self._image = open_session(directory / "image_encoder.onnx", device=device, threads=threads)
        self._text = open_session(directory / "text_encoder.onnx", device=device, threads=threads)

    def encode_images(self, images: Iterable["Image"]) -> Floats:
        """RGB images -> (N, D). Takes a batch of images at a time from `images`."""
        pixels = (preprocess_image(image, self._size, self._mean, self._std) for image in images)
        parts = [np.empty((0, self.embedding_size), np.float32)]
        while batch := list(islice(pixels, IMAGE_BATCH)):
            parts += self._image.run(["embeddings"], {"pixels": np.stack(batch)})
        return np.concatenate(parts)

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Texts -> (N, D), in batches of similar length so that little is padded."""
        embeddings = np.empty((len(texts), self.embedding_size), np.float32)
        tokens = tokenize(self._tokenizer, texts)
        lengths = tokens.argmax(axis=1) + 1  # up to the end token, which has the highest id
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= TOKEN_BUDGET:
                stop += 1
            rows = order[start:stop]
            batch = tokens[rows, : lengths[rows[-1]]]
            embeddings[rows] = self._text.run(["embeddings"], {"tokens": batch})[0]
            start = stop
        return embeddings
