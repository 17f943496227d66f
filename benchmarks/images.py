"""A photo as retrieval and generation see it: decoded once and halved, beside plain Pillow twice.

    python -m benchmarks.images [--repetitions 8]

A photo-like picture of 12 megapixels, as a JPEG (baseline and progressive) and a PNG. Both sides
end with what an encoder (224 pixels) and Llama 3.2 Vision (1,120) resize it to, one after the other
in one process; their results are compared before any time is quoted. Also what it takes to find
that a file is plain. Prints one table in Markdown.
"""

import csv
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.ratios import REPETITIONS, Ratio, interleave, per
from mmrag_batch.images.cost import is_plain
from mmrag_batch.images.formats import find_format
from mmrag_batch.images.loader import ImageLoader

SIZES = ((298, 224), (1_120, 840))
"""What retrieval and generation make of a photo of 4 to 3."""
FILES: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 88},
    "progressive JPEG": {"quality": 88, "progressive": True},
    "PNG": {"compress_level": 3},
}


def photo() -> Image.Image:
    """Smooth areas with edges and noise, 4,000 x 3,000 pixels."""
    random = np.random.default_rng(0)
    areas = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    pixels = np.asarray(areas.resize((4_000, 3_000), Image.Resampling.BICUBIC), np.int16)
    noise = random.normal(0, 6, pixels.shape).astype(np.int16)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def plain(file: Path) -> list[Image.Image]:
    """Decoded for each of the two."""
    shown = []
    for size in SIZES:
        with Image.open(file) as image:
            shown.append(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    return shown


def ours(file: Path) -> list[Image.Image]:
    """Decoded once, by a loader that has not seen it."""
    images = ImageLoader(file.parent)
    return [images.load(file.name).resize(size, Image.Resampling.BICUBIC) for size in SIZES]


def are_near(images: list[Image.Image], others: list[Image.Image]) -> bool:
    """Whether each is another's but for a mean difference of 1 of 255."""
    return all(
        np.abs(np.asarray(one, int) - np.asarray(other, int)).mean() < 1
        for one, other in zip(images, others, strict=True)
    )


def compare(name: str, folder: Path, repetitions: int) -> dict[str, list[float]]:
    """Seconds of a processor for a photo in that format, by Pillow and by us."""
    file = folder / name
    photo().save(file, name.split()[-1], **FILES[name])
    sides = {"plain": lambda _: plain(file), "ours": lambda _: ours(file)}
    return interleave(sides, repetitions, agree=are_near, clock=process_time)


def write_photos(folder: Path, count: int) -> Path:
    """A table of questions with a photo each, all of different bytes."""
    buffer = BytesIO()
    photo().save(buffer, "JPEG", **FILES["JPEG"])
    table = folder / "photos.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["question_text", "question_image", "answer_choices"])
        for number in range(count):
            name = f"{number}.jpg"
            (folder / name).write_bytes(buffer.getvalue() + b"%d" % number)  # behind its end
            rows.writerow([f"What is number {number}?", name, '["a pump", "a crane"]'])
    return table


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Of a JPEG."""
    with TemporaryDirectory() as folder:
        seconds = compare("JPEG", Path(folder), repetitions)
    yield Ratio("12", per(seconds["plain"], seconds["ours"]))


def main(repetitions: Annotated[int, typer.Option(min=2)] = REPETITIONS) -> None:
    """Print the table."""
    typer.echo("| 12 megapixels | plain Pillow, twice | once, halved | ratio | found plain |")
    typer.echo("|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for name in FILES:
            seconds = compare(name, Path(folder), repetitions)
            data = (Path(folder) / name).read_bytes()
            look = {"look": lambda _, data=data: is_plain(find_format(data), data)}
            seconds |= interleave(look, repetitions, clock=process_time)
            twice, once, found = (1000 * median(values) for values in seconds.values())
            cells = f"{twice:.0f} ms | {once:.0f} ms | {twice / once:.2f} | {found:.2f} ms"
            typer.echo(f"| {name} | {cells} |")


if __name__ == "__main__":
    typer.run(main)
