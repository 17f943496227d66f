"""What encoders are compared on: pictures and texts of the user's own, or drawn ones."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import InputError, RowError
from mmrag_batch.export.encoders import Encoders
from mmrag_batch.export.parity import check_cosine, least_cosine, top_k_agreement
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import with_pages
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.table.rows import read_rows
from mmrag_batch.train.demo_pairs import sentences
from mmrag_batch.train.demo_pictures import draw
from mmrag_batch.train.demo_world import THINGS

PICTURES, TEXTS = 24, 96
"""Most that are compared: the torch side takes a second or two a picture at full size."""
BATCH = 8
K = 5


@dataclass(frozen=True, slots=True)
class Contents:
    """Pictures in RGB, and texts."""

    pictures: list[Image]
    texts: list[str]


def read_sample(path: Path | None) -> Contents:
    """The first contents of a table, the pictures of a folder, or drawn ones; what a folder has no
    texts for is drawn, too. Raises InputError where nothing can be read."""
    drawn = Contents(
        [draw(Random(n), thing.colour, thing.shape) for n, thing in enumerate(THINGS[:PICTURES])],
        sentences(Random(0), TEXTS)[:TEXTS],
    )
    if path is None:
        return drawn
    if path.is_dir():
        sources, texts = (file.name for file in sorted(path.iterdir())), drawn.texts
        pictures = _loaded(ImageLoader(path), sources)
    else:
        cells = list(islice(_contents(path), 50 * TEXTS))
        texts = list(dict.fromkeys(text for text, _ in cells if text))[:TEXTS]
        sources = (source for source in dict.fromkeys(image for _, image in cells) if source)
        pictures = _loaded(ImageLoader(path.parent), sources)
    if not pictures and not texts:
        raise InputError(f"{path} holds no picture and no text to compare encoders on.")
    return Contents(pictures, texts)


def _contents(table: Path) -> Iterator[tuple[str | None, str | None]]:
    """The text and the picture of each question and document."""
    images = ImageLoader(table.parent)
    for row in read_rows(table):
        if row.question is not None:
            yield row.question.text, row.question.image
            for document in with_pages(row.question, images).documents:
                yield document.text, document.image


def _loaded(images: ImageLoader, sources: Iterator[str]) -> list[Image]:
    pictures: list[Image] = []
    for source in sources:
        with suppress(RowError):
            pictures.append(images.load(source))
        if len(pictures) == PICTURES:
            break
    return pictures


@torch.inference_mode()
def compare(
    encoders: Encoders, directory: Path, spec: RetrieverSpec, contents: Contents
) -> dict[str, float]:
    """The graphs in `directory`, run as `predict` runs them, beside torch in float32.

    The lowest cosine of pictures and texts, and how much of each one's five nearest stays. Raises
    InternalError where a cosine is below the precision's least.
    """
    exported = Encoder(directory, spec, device="cpu")
    expected, actual, figures = [], [], {}
    if contents.pictures:
        pixels = torch.stack([torch.from_numpy(exported.pixels(p)) for p in contents.pictures])
        expected.append(_run(encoders.image, pixels))
        actual.append(torch.from_numpy(exported.encode_images(contents.pictures)))
        figures["image_cosine"] = least_cosine(expected[-1], actual[-1])
    if contents.texts:
        tokens = torch.from_numpy(exported.tokens(contents.texts))
        expected.append(_run(encoders.text, tokens))
        actual.append(torch.from_numpy(exported.encode_texts(contents.texts)))
        figures["text_cosine"] = least_cosine(expected[-1], actual[-1])
    for name, cosine in figures.items():
        check_cosine(name, cosine, spec.precision)
    total = sum(map(len, expected))
    if total > K:
        figures["top_5_agreement"] = top_k_agreement(torch.cat(expected), torch.cat(actual), K)
    return figures


def _run(module: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([module(batch) for batch in inputs.split(BATCH)])  # type: ignore[no-untyped-call]
