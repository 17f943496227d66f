"""A photo as retrieval and generation see it: decoded once and halved, beside plain Pillow twice.

    python -m benchmarks.images [--repetitions 7]

A photo-like picture of 12 megapixels, as a JPEG (baseline and progressive) and a PNG. Both sides
end with what an encoder (224 pixels) and Llama 3.2 Vision (1,120) resize it to, one after the other
in one process; their results are compared before any time is quoted. Also what it takes to find
that a file is plain. Prints one table in Markdown.
"""

from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from mmrag_batch.images.cost import is_plain
from mmrag_batch.images.formats import find_format
from mmrag_batch.images.loader import ImageLoader

SIZES = ((298, 224), (1_120, 840))
"""What retrieval and generation make of a photo of 4 to 3."""
FILES = {
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


def milliseconds(call: Callable[[], object], repetitions: int) -> float:
    """Median of a processor's time, the first left out."""
    times = []
    for _ in range(repetitions + 1):
        start = process_time()
        call()
        times.append(process_time() - start)
    return 1_000 * median(times[1:])


def main(repetitions: Annotated[int, typer.Option(min=1)] = 7) -> None:
    """Print the table."""
    print("| 12 megapixels | plain Pillow, twice | once, halved | ratio | found plain |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    image = photo()
    with TemporaryDirectory() as folder:
        for name, options in FILES.items():
            buffer = BytesIO()
            image.save(buffer, name.split()[-1], **options)
            data = buffer.getvalue()
            file = Path(folder) / "photo"
            file.write_bytes(data)
            for before, after in zip(plain(file), ours(file)):
                difference = np.abs(np.asarray(before, int) - np.asarray(after, int)).mean()
                assert difference < 1, f"{name}: they differ by {difference:.2f} of 255"
            twice = milliseconds(partial(plain, file), repetitions)
            once = milliseconds(partial(ours, file), repetitions)
            look = milliseconds(partial(is_plain, find_format(data), data), repetitions)
            print(  # noqa: T201
                f"| {name} | {twice:.0f} ms | {once:.0f} ms | {twice / once:.2f} | {look:.2f} ms |"
            )


if __name__ == "__main__":
    typer.run(main)
