"""Images and texts -> what the encoders read, with NumPy, Pillow and tokenizers alone.

ImageBind's published preprocessing, which is CLIP's: the short side resized to the encoder's size
(bicubic), the centre cut out, values scaled to [0, 1], normalised by channel; texts as token ids,
cut to the context length with their end token kept, zero-padded.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def preprocess_image(
    image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]
) -> Floats:
    """An RGB image -> normalised pixels (3, size, size)."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.float32) / 255
    normal = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def tokenize(tokenizer: "Tokenizer", texts: Sequence[str]) -> Ids:
    """Texts -> token ids (B, L), zero-padded to the longest of them."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = tokens
    return ids
