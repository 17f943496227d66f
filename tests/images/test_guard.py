"""Images that cost more than their size says are a problem of their row, within a limit."""

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.cost import MAX_PARTS, is_plain
from mmrag_batch.images.formats import FORMATS, find_format
from mmrag_batch.images.guard import Helper, decode_within_limits
from mmrag_batch.images.pixels import settle_warnings
from tests.images.costly import (
    bmp_of_runs,
    encode,
    gif_of_comments,
    jpeg_of_scans,
    png_of_chunks,
    tiff_of_strips,
)


@pytest.fixture(autouse=True)
def _settled_warnings() -> None:
    settle_warnings()


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    helper = Helper(seconds=1)
    yield helper
    helper.close()


COSTLY = {
    "JPEG": jpeg_of_scans(2_000, 400),
    "GIF": gif_of_comments(MAX_PARTS),
    "TIFF": tiff_of_strips(300),
    "PNG": png_of_chunks(2 * MAX_PARTS),
    "BMP": bmp_of_runs(64),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_k02_a_file_that_asks_for_much_of_what_is_not_bounded_is_not_plain(kind: str) -> None:
    assert find_format(COSTLY[kind]) == kind
    assert not is_plain(kind, COSTLY[kind])


def test_k02_tiles_far_larger_than_their_image_are_not_plain() -> None:
    whole = tiff_of_strips(4)
    assert is_plain("TIFF", whole)
    wide = whole.replace(struct.pack("<HHII", 322, 3, 1, 1), struct.pack("<HHII", 322, 4, 1, 2**31))
    assert wide != whole
    assert not is_plain("TIFF", wide)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"icc_profile": b"\xff\xda" * 99}])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_k02_what_encoders_write_is_plain(kind: str, options: dict[str, object]) -> None:
    assert is_plain(
        kind, encode(Image.effect_noise((300, 200), 50).convert("RGB"), kind, **options)
    )


def test_k02_thousands_of_scans_of_many_pixels_are_told_from_the_header() -> None:
    with pytest.raises(RowError, match="2,000 scans of 64,000,000 pixels") as caught:
        decode_within_limits(jpeg_of_scans(8_000, 2_000))
    assert caught.value.code == "image_too_costly"


def test_k02_an_image_that_takes_too_long_costs_itself_alone(helper: Helper) -> None:
    good = encode(Image.new("RGB", (4, 2), "red"), "PNG")
    assert helper.decode(good, "PNG").size == (4, 2)
    with pytest.raises(RowError, match="decoding it takes over 1 s") as caught:
        helper.decode(bmp_of_runs(3_000), "BMP")
    assert caught.value.code == "image_too_costly"
    assert helper.decode(good, "PNG").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(RowError) as caught:
        helper.decode(b"\x89PNG\r\n\x1a\n", "PNG")
    assert caught.value.code == "image_corrupt"


def test_k02_an_image_that_takes_too_much_memory_costs_itself_alone() -> None:
    helper = Helper(memory=320 << 20)
    try:
        with pytest.raises(RowError, match="memory") as caught:
            helper.decode(encode(Image.new("L", (8_000, 8_000)), "PNG", compress_level=1), "PNG")
        assert caught.value.code == "image_too_costly"
        assert helper.decode(encode(Image.new("L", (4, 2)), "PNG"), "PNG").size == (4, 2)
    finally:
        helper.close()


def test_k02_a_helper_that_is_killed_is_started_again(helper: Helper) -> None:
    good = encode(Image.new("RGB", (4, 2), "red"), "AVIF")
    helper.decode(good, "AVIF")
    process = helper._process.process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(RowError, match="too much memory"):
        helper.decode(good, "AVIF")
    assert helper.decode(good, "AVIF").size == (4, 2)


def test_a_fork_of_this_process_has_a_helper_of_its_own() -> None:
    helper = Helper()
    good = encode(Image.new("RGB", (4, 2), "red"), "AVIF")
    helper.decode(good, "AVIF")
    inherited = helper._process.process
    assert inherited is not None
    if not (child := os.fork()):
        is_right = helper.decode(good, "AVIF").size == (4, 2)
        os._exit(not is_right or helper._process.process is inherited)
    assert os.waitpid(child, 0)[1] == 0
    assert helper.decode(good, "AVIF").size == (4, 2)
    assert helper._process.process is inherited
    helper.close()


def test_threads_share_a_helper(helper: Helper) -> None:
    images = [encode(Image.new("RGB", (4 + n, 3), (9 * n,) * 3), "AVIF") for n in range(4)]
    sizes: list[bool] = []

    def work() -> None:
        sizes.extend(
            helper.decode(data, "AVIF").size == (4 + n, 3) for n, data in enumerate(images)
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [True] * 16


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_field_08_new_formats_are_read(kind: str) -> None:
    image = decode_within_limits(encode(Image.new("RGB", (64, 48), "red"), kind))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    red, green, blue = image.getpixel((9, 9))  # type: ignore[misc]
    assert red > 245
    assert max(green, blue) < 10


def test_field_08_heic_is_read_where_its_library_is_installed(tmp_path: Path) -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    try:
        import pillow_heif
    except ImportError:
        with pytest.raises(RowError, match="HEIC; run `pip install pillow-heif`") as caught:
            decode_within_limits(head)
        assert caught.value.code == "image_unsupported"
    else:
        pillow_heif.register_heif_opener()
        image = decode_within_limits(encode(Image.new("RGB", (64, 48), "red"), "HEIF"))
        assert image.size == (64, 48)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (bytes(100), "all zeros"),
        (b"<!DOCTYPE html><title>404", "a web page"),
        (b"\n<?xml version='1.0'?>\n<svg xmlns='x'/>", "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"error": 403}', "JSON"),
        (b"PK\x03\x04", "a ZIP file"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"what", f"not an image of {', '.join(FORMATS)}"),
    ],
)
def test_field_08_a_message_says_what_a_file_looks_like(data: bytes, words: str) -> None:
    with pytest.raises(RowError, match=words):
        find_format(data)
