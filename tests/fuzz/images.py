"""Random images of every format that is read, and what is left of them after a damage."""

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from random import Random
from typing import Any

from PIL import Image, features

from mmrag_batch.images.cost import MAX_PARTS
from mmrag_batch.images.formats import FORMATS
from tests.faults.damage import DAMAGES, damaged
from tests.images import costly
from tests.images.parts import write_pdf

HAS = {"AVIF": features.check("avif"), "JPEG2000": features.check("jpg_2000")}
KINDS = tuple(
    kind
    for kind in FORMATS
    if HAS.get(kind, True) and (kind != "HEIF" or find_spec("pillow_heif") is not None)
)
"""Those that can be made here."""
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "AVIF": ("L", "RGB", "RGBA"),
    "HEIF": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
}
SIDES = (1, 2, 3, 7, 16, 33, 64, 200, 500)
NUMBERS = (b"\0\0", b"\xff\xff", b"\x7f\xff\xff\xff", b"\xff" * 4, b"\0\0\0\x01", b"\x80\0\0\0")
"""What stands where a size or a place did."""
HEAD = 64
"""Bytes of most files in which their sizes stand."""
COSTLY: dict[str, Callable[[int], bytes]] = {
    "JPEG": lambda count: costly.jpeg_of_scans(64, count),
    "PNG": costly.png_of_chunks,
    "GIF": costly.gif_of_comments,
    "BMP": lambda count: costly.bmp_of_runs(count // 20),
    "TIFF": lambda count: costly.tiff_of_strips(count // 20),
}


def make_image(kind: str, chance: Random) -> bytes:
    """An image of one of KINDS, as an encoder or somebody hostile writes it."""
    if kind == "PDF":
        return _pdf(chance)
    if kind in COSTLY and chance.random() < 0.02:
        return COSTLY[kind](chance.randrange(20, 2 * MAX_PARTS))
    image = _pixels(chance.choice(MODES[kind]), chance)
    return costly.encode(image, kind, **_options(kind, image, chance))


def damage_image(data: bytes, other: bytes, chance: Random) -> bytes:
    """The image after what disks, networks and strangers do; `other` is another one."""
    way = chance.randrange(6)
    if way == 0:  # a number in its head is another one
        at = chance.randrange(min(HEAD, len(data)))
        number = chance.choice(NUMBERS)
        return data[:at] + number + data[at + len(number) :]
    if way == 1:
        return chance.choice((data + data, data + bytes(99), b"\n" + data, data[::-1]))
    if way == 2:  # the head of one, the body of another
        at = chance.randrange(len(data))
        return data[:at] + other[chance.randrange(len(other)) :]
    for _ in range(chance.choice((1, 1, 3, 20))):
        data = damaged(chance.choice(DAMAGES), data, other, chance)
    return data


def _pixels(mode: str, chance: Random) -> Image.Image:
    size = chance.choice(SIDES), chance.choice(SIDES)
    noise = Image.effect_noise(size, chance.randrange(1, 100))
    if mode == "I;16":
        return Image.frombytes(mode, size, chance.randbytes(2 * size[0] * size[1]))
    return noise.convert("RGB").convert(mode) if mode in ("P", "CMYK") else noise.convert(mode)


def _options(kind: str, image: Image.Image, chance: Random) -> dict[str, Any]:
    """How an encoder is told to write it."""
    options: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") and chance.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = chance.choice((1, 3, 6, 8) if kind == "TIFF" else (0, 1, 3, 6, 8, 9))
        options["exif"] = exif.tobytes()
    if kind == "JPEG":
        options |= {"progressive": chance.random() < 0.5, "quality": chance.choice((1, 75, 100))}
    elif kind == "TIFF" and image.mode == "RGB":
        options["compression"] = chance.choice(("raw", "jpeg", "tiff_lzw", "tiff_deflate"))
    elif kind == "TIFF" and image.mode == "1":
        options["compression"] = chance.choice(("group3", "group4", "packbits"))
    elif kind == "JPEG2000":
        options |= {"no_jp2": chance.random() < 0.5, "irreversible": chance.random() < 0.5}
    elif kind == "WEBP":
        options["lossless"] = chance.random() < 0.5
    if kind in ("PNG", "GIF", "WEBP", "TIFF") and chance.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.rotate(180)] * 2}
    return options


def _pdf(chance: Random) -> bytes:
    if chance.random() < 0.3:
        stream = BytesIO()
        _pixels("RGB", chance).save(stream, "PDF")
        return stream.getvalue()
    pages = [chance.choice(("", "The crane lifts 10 t.", "/X0 Do", "a\\000b\nc", "(", "BT " * 99))]
    depth = chance.choice((0, 1, 3))
    forms = {f"X{n}": f"/X{n + 1} Do ".encode() * 5 for n in range(depth)}
    size = chance.choice(((595, 842), (1, 1), (14_400, 200), (10**9, 10**9), (0, 0), (-5, 9)))
    return write_pdf(pages * chance.choice((0, 1, 1, 2, 9)), size=size, forms=forms)
