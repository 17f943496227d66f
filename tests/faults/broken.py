"""Forty rows that cannot be answered, one of each kind, as a user's table could hold them."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

from PIL import Image

COLUMNS = ("question_text", "question_image", "answer_choices", "documents", "relevant")
Cells = tuple[str, ...]


def broken_rows(root: Path) -> list[tuple[str, Cells]]:
    """Pairs of an error's code and the cells of a row that ends in it; its files lie in `root`."""
    rows = [*_structures(), *_lists(), *_sources(root)]
    rows += [(code, ("What?", name)) for name, code in _write_images(root).items()]
    return [(code, cells if code == "bad_row" else _padded(cells)) for code, cells in rows]


def _padded(cells: Cells) -> Cells:
    return (*cells, *[""] * (len(COLUMNS) - len(cells)))


def _structures() -> list[tuple[str, Cells]]:
    return [
        ("bad_row", ("too short",)),
        ("bad_row", ("too long", "", "", "", "", "a sixth")),
        ("bad_row", ("a NUL \0 inside", "", "", "", "")),
        ("bad_row", ("x" * (10 * 2**20 + 1), "", "", "", "")),
        ("bad_question", ("",)),
        ("bad_question", ("nan",)),
        ("prompt_too_long", ("word " * 5000,)),
    ]


def _lists() -> list[tuple[str, Cells]]:
    choices = ["a, b", "[1, 2]", '["a", "a"]', '["a", ""]', str([str(n) for n in range(27)])]
    documents = ["a text", "[1]", '[{"id": "x"}]', '[{"id": "1", "text": "a"}, "b"]', '["\\ud800"]']
    return [
        *(("bad_choices", ("What?", "", cell)) for cell in choices),
        *(("bad_documents", ("What?", "", "", cell)) for cell in documents),
    ]


def _sources(root: Path) -> list[tuple[str, Cells]]:
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / "out.png").symlink_to("/etc/hostname")
    (root / "loop.png").symlink_to("loop.png")
    with (root / "huge.png").open("wb") as stream:
        stream.truncate(64 * 2**20 + 1)
    sources = {
        "absent.png": "image_missing",
        "n" * 300 + ".png": "image_missing",
        "../../etc/passwd": "path_denied",
        "/etc/passwd": "path_denied",
        "~/a.png": "path_denied",
        "file:///etc/passwd": "path_denied",
        "pipe.png": "path_denied",
        "folder.png": "path_denied",
        "out.png": "path_denied",
        "huge.png": "image_too_large",
        "http://169.254.169.254/a.png": "image_denied",
        "data:image/png;base64,AA*A": "image_corrupt",
        "data:text/html;base64,AAAA": "image_denied",
    }
    return [(code, ("What?", source)) for source, code in sources.items()]


def _write_images(root: Path) -> dict[str, str]:
    """Writes files that are no usable images; returns their names and what is wrong with each."""
    buffer = BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG")
    files = {
        "empty.png": (b"", "image_corrupt"),
        "torn.jpg": (buffer.getvalue()[:-200], "image_corrupt"),
        "noise.png": (bytes(range(256)), "image_corrupt"),
        "page.jpg": (b"<html><body>404</body></html>", "image_corrupt"),
        "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image_unsupported"),
        "bomb.png": (_png(50_000, 50_000), "image_too_large"),
        "notes.png": (_png(8, 8, zlib.compress(bytes(100 * 2**20))), "image_too_large"),
        "ribbon.png": (_png(1, 20_000), "image_bad_aspect"),
    }
    for name, (data, _) in files.items():
        (root / name).write_bytes(data)
    return {name: code for name, (_, code) in files.items()}


def _png(width: int, height: int, packed: bytes = b"") -> bytes:
    """The header of a PNG of that size, perhaps a packed note, and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"zTXt", b"note\0\0" + packed), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        check = struct.pack(">I", zlib.crc32(name + body))
        data += struct.pack(">I", len(body)) + name + body + check
    return data
