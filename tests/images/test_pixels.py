"""Decoding: which bytes become which pixels, and which are refused."""

import hashlib
import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mmrag_batch.errors import RowError
from mmrag_batch.images.guard import decode_within_limits as decode
from mmrag_batch.images.pixels import settle_warnings


@pytest.fixture(autouse=True)
def _settled_warnings() -> None:
    settle_warnings()


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """16 x 8 pixels, no two corners alike."""
    values = np.arange(16 * 8 * 4, dtype=np.uint16).reshape(8, 16, 4) % 256
    return Image.fromarray(values.astype(np.uint8), "RGBA").convert(mode)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A gray PNG of that size with a header, the given chunks, and no pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in (header, *chunks, (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + body))
        parts += [struct.pack(">I", len(body)), name, body, check]
    return b"".join(parts)


def code_of(data: bytes) -> str:
    with pytest.raises(RowError) as caught:
        decode(data)
    return caught.value.code


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_allowed_format_is_read(kind: str) -> None:
    image = decode(encode(Image.new("RGB", (16, 8), "red"), kind))
    assert (image.mode, image.size) == ("RGB", (16, 8))
    assert np.abs(np.asarray(image, dtype=int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x07" * 500,
        b"<html><body>404</body></html>",
        encode(gradient(), "JPEG")[:-60],
        encode(gradient(), "PNG")[:-40],
        encode(gradient(), "JPEG")[:20],
    ],
)
def test_g02_what_is_no_whole_image_is_corrupt(data: bytes) -> None:
    assert code_of(data) == "image_corrupt"


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"SIMPLE  =                    T",
        b"8BPS\0\1" + bytes(50),
        encode(gradient(), "PPM"),
        encode(gradient(), "ICO"),
    ],
)
def test_g08_formats_that_are_not_on_the_list_are_refused(data: bytes) -> None:
    assert code_of(data) == "image_unsupported"


@pytest.mark.parametrize("side", [8_001, 9_500, 50_000])
def test_g03_a_pixel_bomb_is_refused_by_its_header(side: int) -> None:
    tracemalloc.start()
    assert code_of(png(side, side)) == "image_too_large"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_g03_a_bomb_in_the_text_of_a_png_is_refused() -> None:
    packed = zlib.compress(bytes(100 * 2**20))
    assert code_of(png(8, 8, (b"zTXt", b"note\0\0" + packed))) == "image_too_large"


def test_g04_a_single_pixel_is_an_image() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), "blue"), "PNG")).getpixel((0, 0)) == (
        0,
        0,
        255,
    )


def test_g04_sides_of_200_to_1_are_the_limit() -> None:
    assert decode(encode(Image.new("L", (1, 200)), "PNG")).size == (1, 200)
    assert code_of(encode(Image.new("L", (1, 201)), "PNG")) == "image_bad_aspect"
    assert code_of(encode(Image.new("L", (20_000, 1)), "PNG")) == "image_bad_aspect"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_g07_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(), kind, exif=exif)
    with Image.open(BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
    assert decode(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1", b"x"]
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_g07_exif_that_cannot_be_read_turns_nothing(exif: bytes, kind: str) -> None:
    data = encode(gradient(), kind, exif=exif, lossless=True)
    assert decode(data).tobytes() == gradient().tobytes()


def test_g05_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    gray = Image.new("LA", (1, 1), (0, 0))
    assert decode(encode(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encode(half, "PNG")).getpixel((0, 0)) == (255, 127, 127)
    assert decode(encode(gray, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_g05_a_transparent_palette_colour_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    read = decode(encode(image, "PNG", transparency=bytes([0, 255])))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_g05_gray_of_16_bits_is_scaled(kind: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    read = np.asarray(decode(encode(Image.fromarray(values), kind)))
    assert read[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_g05_cmyk_is_converted() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


def test_g05_a_cmyk_jpeg_is_converted() -> None:
    red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in red  # whose CMYK is stored inverted
    pixels = np.asarray(decode(red), dtype=int)
    assert np.abs(pixels - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_g06_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "golden"),
    [
        ("L", "2347d7b1112242d8"),
        ("LA", "33214078ee1cb30e"),
        ("RGB", "7205de18323ebb50"),
        ("RGBA", "22e44d06d160accb"),
        ("I;16", "8a0941617df9b4d7"),
    ],
)
def test_g05_the_pixels_of_each_mode_stay_what_they_were(mode: str, golden: str) -> None:
    image = gradient("L").convert("I;16") if mode == "I;16" else gradient(mode)
    pixels = decode(encode(image, "PNG")).tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == golden


def test_g02_a_broken_image_leaves_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    samples = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, one SHORT (TIFF 6.0)
    whole = encode(gradient("RGB"), "TIFF")
    assert whole.count(samples + b"\x03\0") == 1
    assert code_of(whole.replace(samples + b"\x03\0", samples + b"\0\x08")) == "image_corrupt"
    assert caplog.records == []


SEEDS = [
    encode(gradient(mode), kind)
    for kind, mode in [
        ("PNG", "RGBA"),
        ("PNG", "LA"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "L"),
        ("BMP", "RGB"),
        ("TIFF", "RGB"),
    ]
]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 40),
    tail=st.binary(max_size=40),
)
def test_g02_any_bytes_are_an_image_or_a_row_error(
    seed: bytes, flips: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(seed)
    for place, value in flips:
        data[place % len(data)] = value
    try:
        image = decode(bytes(data[: len(data) - cut]) + tail)
    except RowError as error:
        assert error.code in {
            "image_corrupt",
            "image_unsupported",
            "image_too_large",
            "image_too_costly",
            "image_bad_aspect",
            "image_blank",
        }
    else:
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("kind", "size", "kept"),
    [
        ("JPEG", (1_600, 1_562), (1_600, 1_562)),
        ("JPEG", (3_999, 2_499), (3_999, 2_499)),
        ("JPEG", (4_000, 2_500), (2_000, 1_250)),
        ("BMP", (4_000, 2_500), (2_000, 1_250)),
        ("JPEG", (6_400, 6_400), (1_600, 1_600)),
    ],
)
def test_k01_large_images_are_halved_and_look_the_same(
    kind: str, size: tuple[int, int], kept: tuple[int, int]
) -> None:
    image = Image.radial_gradient("L").resize(size, Image.Resampling.BILINEAR)
    read = decode(encode(image, kind))
    assert read.size == kept
    small = [np.asarray(one.convert("L").resize((64, 64)), int) for one in (image, read)]
    assert np.abs(small[0] - small[1]).max() <= 2


def test_k01_a_large_image_is_turned_after_it_is_halved() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.linear_gradient("L").resize((4_000, 2_500))
    read = decode(encode(image, "JPEG", exif=exif))
    assert read.size == (1_250, 2_000)
    assert read.getpixel((1_200, 9))[0] < 20 < 235 < read.getpixel((40, 9))[0]  # type: ignore[index]
