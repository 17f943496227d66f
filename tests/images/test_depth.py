"""Gray of more than 8 bits: which of its values are black and white."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from mmrag_batch.errors import RowError
from mmrag_batch.images.guard import decode_within_limits


def gray_of(
    values: object, dtype: str, kind: str = "TIFF", tags: dict[str, object] | None = None
) -> list[int]:
    """The gray values that come of a row of pixels."""
    image = Image.fromarray(np.array([values], dtype=dtype))
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        directory[int(tag[1:])] = value
    buffer = BytesIO()
    image.save(buffer, kind, **({"tiffinfo": directory} if tags else {}))
    pixels: NDArray[np.uint8] = np.asarray(decode_within_limits(buffer.getvalue()))
    assert (pixels == pixels[:, :, :1]).all()
    return [int(value) for value in pixels[0, :, 0]]


@pytest.mark.parametrize(
    ("values", "dtype", "gray"),
    [
        ([0.0, 0.25, 1.0], "<f4", [0, 64, 255]),
        ([-3.5, 0.0, 3.5], "<f4", [0, 128, 255]),
        ([1e-9, 2e-9, 5e-9], "<f4", [0, 64, 255]),
        ([np.nan, 5.0, 6.0, np.inf, -np.inf], "<f4", [0, 0, 255, 255, 0]),
        ([-1024, 0, 3072], "<i4", [0, 64, 255]),
        ([0, 4095], "<i4", [0, 255]),
        ([0, 2**31 - 1, 2**30], "<i4", [0, 255, 128]),
        ([0, 1024, 4095], "<u2", [0, 64, 255]),
        ([100, 16383], "<u2", [0, 255]),
    ],
)
def test_field_23_values_without_a_stated_range_have_their_own(
    values: list[float], dtype: str, gray: list[int]
) -> None:
    assert gray_of(values, dtype) == gray


@pytest.mark.parametrize(
    ("values", "dtype", "tags", "gray"),
    [
        ([0.0, 0.5], "<f4", {"t340": 0.0, "t341": 1.0}, [0, 128]),
        ([0, 2000], "<u2", {"t280": 0, "t281": 4000}, [0, 128]),
        ([0, 16384, 65535], "<u2", {}, [0, 64, 255]),
        ([1000, 40000], "<u2", {}, [4, 156]),
        ([-9999.0, 2.0, 4.0], "<f4", {"t42113": "-9999"}, [0, 0, 255]),
        ([0.0, 0.5], "<f4", {"t340": 100.0, "t341": 1.0}, [0, 255]),
        ([0.0, 0.5], "<f4", {"t340": 0.0, "t341": 1000.0}, [0, 255]),
        ([0.0, 0.5], "<f4", {"t340": 0.0, "t341": 10.0}, [0, 13]),
        ([0, 4095], "<u2", {"t280": 0, "t281": 65535}, [0, 255]),
    ],
)
def test_field_23_the_range_that_a_file_states_is_taken_where_the_values_use_it(
    values: list[float], dtype: str, tags: dict[str, object], gray: list[int]
) -> None:
    assert gray_of(values, dtype, tags=tags) == gray


@pytest.mark.parametrize(("values", "dtype"), [([7, 7], "<u2"), ([0.5] * 3, "<f4"), ([5], "<i4")])
def test_field_23_a_picture_of_one_value_is_a_problem(values: object, dtype: str) -> None:
    with pytest.raises(RowError, match="all its pixels have the same value") as caught:
        gray_of(values, dtype)
    assert caught.value.code == "image_blank"
    with pytest.raises(RowError, match="the same value"):
        gray_of([np.nan, np.nan], "<f4")


def test_field_23_a_png_of_16_bits_with_12_bits_in_it_is_no_darkness() -> None:
    assert gray_of([0, 2047, 4095], "<u2", "PNG") == [0, 127, 255]


def test_field_23_a_large_picture_is_scaled_as_a_whole() -> None:
    values = np.linspace(0, 1, 600 * 500, dtype="<f4").reshape(600, 500)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    pixels = np.asarray(decode_within_limits(buffer.getvalue()))[:, :, 0]
    assert np.abs(pixels - values * 255).max() <= 0.501


def test_field_23_white_may_be_zero() -> None:
    values = [0, 16384, 65535]
    assert gray_of(values, "<u2", tags={"t262": 1}) == [0, 64, 255]
    buffer = BytesIO()
    Image.fromarray(np.array([values], "<u2")).save(buffer, "TIFF")
    photometric = struct.pack("<HHI", 262, 3, 1)
    data = buffer.getvalue().replace(photometric + b"\1", photometric + b"\0")
    assert np.asarray(decode_within_limits(data))[0, :, 0].tolist() == [255, 191, 0]


def test_field_23_colours_that_come_out_black_are_a_problem() -> None:
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    for factor, code in ((1, "image_blank"), (8, "")):
        values = struct.pack(">6H", *(factor * value for value in (0, 900, 4095, 3000, 12, 0)))
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + values)), (b"IEND", b""))
        data = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
        try:
            decode_within_limits(data)
        except RowError as error:
            assert error.code == code
        else:
            assert code == ""
