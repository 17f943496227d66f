"""Gray of more than 8 bits, integer or float, brought to 8: measurements, scans, renderings."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmrag_batch.errors import RowError

Range = tuple[float, float]
_MIN_VALUE, _MAX_VALUE = (280, 340), (281, 341)
"""MinSampleValue and SMinSampleValue of TIFF 6.0, and the same for the greatest."""
_BITS, _NO_DATA = 258, 42113
"""BitsPerSample; GDAL_NODATA, the value of pixels that were not measured."""
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ROWS = 256
_DARK = 64


def to_eight_bits(image: Image.Image) -> Image.Image:
    """The image in mode L: black at the least value of its range, white at the greatest.

    The range is what the file states, unless the values would come out as one or two of gray, or
    that of its samples' bits, unless they take less than a quarter of it, as 12 bits kept in 16 do.
    Otherwise it goes from the least value there is to the greatest. Values that are no number are
    black. Raises RowError `image_blank` where there is one value only.
    """
    pixels = np.asarray(image)
    low, high = _extremes(pixels, _no_data(image))
    if not low < high:
        raise RowError("image_blank", "all its pixels have the same value")
    for bottom, top, share in _stated(image):
        if min(high, top) - max(low, bottom) >= (top - bottom) * share:
            low, high = bottom, top
            break
    gray = np.empty(pixels.shape, np.uint8)
    for part, scaled in zip(_parts(pixels), _parts(gray)):
        values = (part.astype(np.float64) - low) * (255 / (high - low))
        scaled[:] = np.nan_to_num(values, nan=0, posinf=255, neginf=0).clip(0, 255).round()
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        np.subtract(255, gray, out=gray)
    return Image.fromarray(gray)


def check_depth(image: Image.Image) -> None:
    """Raise RowError `image_blank` where colours of 16 bits, of which Pillow keeps the upper eight,
    come out all but black, as 12 bits kept in 16 do."""
    bands = image.getextrema()
    if max(band[1] for band in bands if isinstance(band, tuple)) < _DARK:
        raise RowError("image_blank", "it uses the lower of 16 bits alone; save it with 8 a colour")


def _parts(pixels: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Some rows at a time, so that little is in memory twice."""
    return (pixels[start : start + _ROWS] for start in range(0, len(pixels), _ROWS))


def _extremes(pixels: NDArray[np.generic], no_data: float | None) -> Range:
    low, high = math.inf, -math.inf
    for part in _parts(pixels):
        values = part.astype(np.float64)
        values = values[np.isfinite(values) & (values != no_data)]
        if values.size:
            low, high = min(low, values.min()), max(high, values.max())
    return low, high


def _stated(image: Image.Image) -> Iterator[tuple[float, float, float]]:
    """The ranges that a file states, the most telling first, and the share of each that values have
    to take for it to be that of the picture."""
    bits = 0
    if image.mode.startswith("I;16"):
        bits = min(16, int(_number(getattr(image, "tag_v2", {}).get(_BITS)) or 16))
    tags = getattr(image, "tag_v2", {})
    for least, greatest in zip(_MIN_VALUE, _MAX_VALUE):
        low, high = _number(tags.get(least, 0)), _number(tags.get(greatest))
        if low is not None and high is not None and low < high:
            yield low, high, 1 / 4 if high == (1 << bits) - 1 else 1 / 128
    if bits:
        yield 0, (1 << bits) - 1, 1 / 4


def _no_data(image: Image.Image) -> float | None:
    return _number(getattr(image, "tag_v2", {}).get(_NO_DATA))


def _number(value: object) -> float | None:
    """A tag as a number, None where it is none."""
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        number = float(str(value).strip(" \0"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
