"""Images that ask a decoder for much, again and again: each is small, and none of it is damage."""

import struct
import zlib
from io import BytesIO

from PIL import Image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG (T.81) whose later scans refine nothing, again and again."""
    whole = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    frame = whole.index(b"\xff\xc2")
    whole = whole[: frame + 5] + struct.pack(">HH", side, side) + whole[frame + 9 :]
    first = whole.index(b"\xff\xda")
    refine = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 1) + b"\0" * 8
    return whole[:first] + refine * scans + b"\xff\xd9"


def gif_of_comments(blocks: int) -> bytes:
    whole = encode(Image.new("L", (4, 4)), "GIF")
    first = whole.index(b"\x2c", 13)
    return whole[:first] + (b"\x21\xfe\xff" + b"x" * 255 + b"\0") * blocks + whole[first:]


def tiff_of_strips(side: int) -> bytes:
    """Uncompressed tiles of 1 x 1 pixel, which Pillow lists one by one."""
    count = side * side
    offset = 8 + 2 + 8 * 12 + 4
    entries = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (322, 3, 1, 1),
        (323, 3, 1, 1),
        (324, 4, count, offset),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + directory + bytes(4) + struct.pack("<I", offset) * count


def png_of_chunks(count: int) -> bytes:
    whole = encode(Image.new("L", (4, 4)), "PNG")
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    return whole[:33] + empty * count + whole[33:]


def bmp_of_runs(side: int) -> bytes:
    palette = encode(Image.new("P", (1, 1)), "BMP")[54:1078]
    body = (b"\1\7" * side + b"\0\0") * side
    sizes = struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + sizes + info + palette + body
