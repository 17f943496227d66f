"""Whether an image costs what its size says, told from its structure before it is decoded.

What a decoder does for each pixel and byte once is bounded by the limits on both. What a file may
ask for again and again is not: a JPEG's scans, a TIFF's strips, the comments of a GIF. Files that
ask for much of that, and formats whose structure is not looked into here, are not plain.
"""

import struct
from collections.abc import Iterator

from mmrag_batch.errors import RowError

MAX_SCANS = 32
"""Of a JPEG. Encoders write up to 20 or so; 32 over 64 megapixels take some seconds."""
MAX_SCANNED = MAX_SCANS * 64 * 10**6
"""Pixels of a JPEG's scans together, each some nanoseconds."""
MAX_PARTS = 1_000
"""Of a file that Pillow reads in Python, one by one; PNGs may have more of them by their bytes."""
_PNG_CHUNK = 2_048
"""Bytes of a PNG for which one more chunk is allowed; encoders write 8 KiB and more in each."""

_SOS, _EOI = 0xDA, 0xD9
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)))
_COMPRESSION = 259
_MOST_VALUES = {273: 65_536, 324: 65_536}
"""TIFF: offsets of strips and of tiles, each of which Pillow may list."""
_LARGEST_VALUE = {322: 8_192, 323: 8_192}
"""Sides of a tile, which is decoded whole."""
_CHEAP = frozenset({1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
"""TIFF: none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard. No JPEG, of any kind."""


def is_plain(kind: str, data: bytes) -> bool:
    """Whether the image of this format takes a time that its pixels and bytes bound.

    Raises RowError `image_too_costly` where it is known without trying.
    """
    look = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "BMP": _bmp, "TIFF": _tiff}
    try:
        return kind in look and look[kind](data)
    except (struct.error, IndexError, KeyError):  # it ends too early, or is damaged
        return False


def _jpeg(data: bytes) -> bool:
    frame, components, pixels = 0, 0, 0
    for marker, start in _jpeg_segments(data):
        if marker in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, start + 3)
            frame, pixels = marker, width * height
        elif marker == _SOS:
            if frame in _SEQUENTIAL and data[start + 2] == components:
                return True  # libjpeg reads no other scan
            scans = data.count(b"\xff\xda", start - 2)
            if scans * pixels > MAX_SCANNED:
                message = f"{scans:,} scans of {pixels:,} pixels; save it anew, not progressive"
                raise RowError("image_too_costly", message)
            return scans <= MAX_SCANS
    return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment up to the first scan, and where its length stands."""
    place = 2
    for _ in range(MAX_PARTS):
        if data[place] != 0xFF:
            return  # Pillow would look for the next marker byte by byte
        while data[place + 1] == 0xFF:
            place += 1
        marker = data[place + 1]
        yield marker, place + 2
        if marker in (_SOS, _EOI):
            return
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]


def _png(data: bytes) -> bool:
    place = 8
    for _ in range(MAX_PARTS + len(data) // _PNG_CHUNK):
        if place + 8 >= len(data) or data[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + struct.unpack_from(">I", data, place)[0]
    return False


def _webp(data: bytes) -> bool:
    place = 12
    for _ in range(MAX_PARTS):
        if place + 8 >= len(data):
            return True
        size = struct.unpack_from("<I", data, place + 4)[0]
        place += 8 + size + size % 2
    return False


def _gif(data: bytes) -> bool:
    """Whether the first image comes after few blocks: Pillow joins comments in square time."""
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    inside = False
    for _ in range(MAX_PARTS):
        if inside:
            inside = data[place] != 0
            place += 1 + data[place]
        elif data[place] == 0x21:
            inside, place = True, place + 2
        else:
            return data[place] == 0x2C
    return False


def _bmp(data: bytes) -> bool:
    """Whether no run-length encoding has to be undone, which Pillow does in Python."""
    header = struct.unpack_from("<I", data, 14)[0]
    return header < 40 or struct.unpack_from("<I", data, 30)[0] not in (1, 2)


def _tiff(data: bytes) -> bool:
    order = "<" if data[:2] == b"II" else ">"
    version, place = struct.unpack_from(order + "HI", data, 2)
    count = struct.unpack_from(order + "H", data, place)[0]
    if version != 42 or count > MAX_PARTS:
        return False
    total, compression = 0, 1
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", data, entry)
        total += values * _SIZES.get(kind, 1)
        value = struct.unpack_from(order + ("I" if kind == 4 else "H"), data, entry + 8)[0]
        if tag == _COMPRESSION:
            compression = value
        elif values > _MOST_VALUES.get(tag, values) or value > _LARGEST_VALUE.get(tag, value):
            return False
    return compression in _CHEAP and total <= 2 * len(data)
