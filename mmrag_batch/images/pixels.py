"""From the bytes of an image to upright RGB pixels, whatever the bytes claim to be."""

import logging
import struct
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmrag_batch.errors import RowError

PIXELS_VERSION = 1
"""Counts changes after which the same file gives other pixels."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64 * 10**6
MAX_ASPECT = 200
"""Longest side over shortest."""

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


def decode(data: bytes, name: str) -> Image.Image:
    """The first frame of an encoded image, upright, in RGB with transparency on white.

    Messages call the image `name`. Raises RowError: `image_corrupt`, `image_too_large` (told
    from the header, before anything is decoded), `image_bad_aspect`.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, name)
            image.load()
            return _to_rgb(_turn_upright(image))
    except RowError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RowError("image_too_large", f"{name}: {error}") from None
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise RowError("image_corrupt", f"{name}: not an image of {kinds}") from None
    except Exception as error:  # a hostile file can make a decoder raise nearly anything
        if "too large" in str(error):  # what Pillow says of a PNG's compressed text
            raise RowError("image_too_large", f"{name}: {error}") from None
        raise RowError("image_corrupt", f"{name}: {type(error).__name__}: {error}") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        pixels = f"{size[0]} x {size[1]} pixels, over {MAX_PIXELS:,}"
        raise RowError("image_too_large", f"{name}: {pixels}")
    if long > MAX_ASPECT * short:
        ratio = f"{size[0]} x {size[1]} pixels, sides over {MAX_ASPECT} to 1"
        raise RowError("image_bad_aspect", f"{name}: {ratio}")


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, KeyError, struct.error):
        return image  # EXIF that cannot be read turns nothing
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # gray of 16 bits, which `convert` would clip or cut
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")
