"""Images and texts -> what the encoders read, with NumPy, Pillow and tokenizers alone.

By default ImageBind's published preprocessing, which is CLIP's: the short side resized to the
encoder's size (bicubic), the centre cut out, values scaled to [0, 1], normalised by channel; texts
as token ids, zero-padded. A text over the context length is cut but keeps its end token, which is
where the encoder reads it off. Other encoders say in their spec what they do instead.
"""

from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmrag_batch.bundle import Framing, Resample
from mmrag_batch.errors import MissingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def preprocess_image(
    image: Image.Image,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    framing: Framing = "torchvision",
    resample: Resample = "bicubic",
) -> Floats:
    """An RGB image -> normalised pixels (3, size, size)."""
    image = _square(image, size, framing, Image.Resampling[resample.upper()])
    pixels = np.asarray(image, dtype=np.float32) / 255
    normalized = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


def _square(
    image: Image.Image, size: int, framing: Framing, resample: Image.Resampling
) -> Image.Image:
    if framing == "stretch":
        return image.resize((size, size), resample)
    short_side = min(image.size)
    width, height = (side * size // short_side for side in image.size)  # rounded down, as published
    image = image.resize((width, height), resample)
    if framing == "torchvision":
        left, top = round((width - size) / 2), round((height - size) / 2)
    else:
        left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def clean_text(text: str) -> str:
    """A text as CLIP's published code, and so ImageBind's, reads it: repaired by ftfy (ligatures,
    full-width letters, control characters, wrongly decoded bytes), HTML entities resolved twice,
    runs of spaces made one, in lower case."""
    import ftfy

    return " ".join(unescape(unescape(ftfy.fix_text(text))).split()).lower()


def open_tokenizer(file: Path, context_length: int, *, pad: bool = False) -> "Tokenizer":
    """The tokenizer of an encoder; `pad`: as its file says. Start and end tokens are its own: their
    names in a text are plain text. Raises MissingError."""
    from tokenizers import Tokenizer

    if not file.is_file():
        raise MissingError(f"{file} is missing; export the retriever again.")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(context_length)
    if not pad:
        tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenize(tokenizer: "Tokenizer", texts: Sequence[str]) -> Ids:
    """Texts -> token ids (B, L), zero-padded to the longest of them."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, tokens in zip(ids, rows):
        row[: len(tokens)] = tokens
    return ids
