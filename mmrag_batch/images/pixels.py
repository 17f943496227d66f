"""From the bytes of an image to upright RGB pixels, whatever the bytes claim to be."""

import logging
import struct
import threading
import warnings
from contextlib import nullcontext
from io import BytesIO

from PIL import Image, ImageFile, UnidentifiedImageError

from mmrag_batch.errors import RowError
from mmrag_batch.images.depth import check_depth, to_eight_bits

PIXELS_VERSION = 2
"""Counts changes after which the same file gives other pixels."""
KEPT_PIXELS = 2_500_000
"""Images are halved, once or more, as long as so many pixels remain: twice what Llama 3.2 Vision
looks at (four tiles of 560 x 560), so that what is resized from them is as good."""
MAX_PIXELS = 64 * 10**6
MAX_ASPECT = 200
"""Longest side over shortest."""
_LARGE = threading.Lock()
"""Held while a large image is decoded, so that their full sizes are in memory one at a time."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (EXIF 2.3, tag 0x0112)."""


def settle_warnings() -> None:
    """Have this process ignore Pillow's warnings but the one about sizes, which becomes an error.

    They speak of odd metadata without a word on which file, and `decode` answers them anyway. Call
    it before `decode`, once: `warnings.catch_warnings` is not safe between threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it logs, it raises as well


def decode(data: bytes, kind: str) -> Image.Image:
    """The first frame of an image in the format `kind`, upright, in RGB with transparency on white,
    halved as long as KEPT_PIXELS remain.

    Raises RowError: `image_corrupt`, `image_too_large` (told from the header, before anything is
    decoded), `image_bad_aspect`, `image_blank`, `image_too_costly` (no memory for it).
    """
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with Image.open(BytesIO(data), formats=(kind,)) as image:
            _check_size(image.size)
            with _LARGE if _halvings(image.size) else nullcontext():
                return _decode(image)
    except RowError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RowError("image_too_large", str(error)) from None
    except UnidentifiedImageError:
        raise RowError("image_corrupt", f"begins as {kind} and goes on as something else") from None
    except MemoryError:
        raise RowError("image_too_costly", "there is not enough memory for it") from None
    except Exception as error:  # a hostile file can make a decoder raise nearly anything
        if "too large" in str(error):  # what Pillow says of a PNG's compressed text
            raise RowError("image_too_large", str(error)) from None
        raise RowError("image_corrupt", f"{type(error).__name__}: {error}") from error


def _decode(image: ImageFile.ImageFile) -> Image.Image:
    halvings = _halvings(image.size)
    width, height = image.size
    if halvings:  # a JPEG is decoded to its half, quarter or eighth; others have no draft
        image.draft(image.mode, (width >> halvings, height >> halvings))
    has_deep_colours = (
        bool(image.tile) and ";16" in str(image.tile[0]) and image.mode[0] not in "IF"
    )
    image.load()
    if has_deep_colours:
        check_depth(image)
    method = _what_turns(image)
    rgb = _to_rgb(image)
    if halvings := _halvings(rgb.size):
        rgb = rgb.reduce(1 << halvings)
    return rgb if method is None else rgb.transpose(method)


def _halvings(size: tuple[int, int]) -> int:
    pixels, halvings = size[0] * size[1], 0
    while pixels >> 2 * (halvings + 1) >= KEPT_PIXELS:
        halvings += 1
    return halvings


def _check_size(size: tuple[int, int]) -> None:
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        pixels = f"{size[0]} x {size[1]} pixels, over {MAX_PIXELS:,}"
        raise RowError("image_too_large", pixels)
    if long > MAX_ASPECT * short:
        ratio = f"{size[0]} x {size[1]} pixels, sides over {MAX_ASPECT} to 1"
        raise RowError("image_bad_aspect", ratio)


def _what_turns(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, KeyError, struct.error):
        return None  # EXIF that cannot be read turns nothing
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        return to_eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", rgba.size, "white")
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    return image.convert("RGB")
