"""Text files as an input may come: UTF-8 with or without BOM, any line ends, perhaps gzipped."""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO, cast

from mmrag_batch.errors import InputError, MissingError

MAX_LINE = 64 * 2**20
"""Most characters in one line: a file without line ends (a gzip bomb, say) must not fill memory."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The text of a file, unpacked if it ends in `.gz`, its line ends untouched.

    Raises MissingError (no such file) and InputError (not UTF-8, or a damaged gzip file).
    """
    with _open_bytes(path) as binary:
        try:
            with TextIOWrapper(binary, encoding="utf-8-sig", newline="") as stream:
                yield stream
        except UnicodeDecodeError:
            raise _bad_byte(path) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path} is truncated or no gzip file: {error}. Copy or compress it again."
            ) from error


def _open_bytes(path: Path) -> IO[bytes]:
    check_file(path)
    try:
        if path.name.lower().endswith(".gz"):
            return cast(IO[bytes], gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise MissingError(f"{path} cannot be opened: {error.strerror}.") from error


def check_file(path: Path) -> None:
    """Raise MissingError unless `path` is a regular file."""
    if not path.exists():
        raise MissingError(f"{path} does not exist. Check the path of the input.")
    if not path.is_file():
        raise MissingError(f"{path} is not a regular file; the input is read more than once.")


def read_lines(path: Path, stream: TextIO) -> Iterator[str]:
    """The lines of a stream, ends included. Raises InputError for one over MAX_LINE."""
    number = 0
    while line := stream.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise InputError(f"{path}, line {number} is over {MAX_LINE:,} characters long.")
        yield line


def _bad_byte(path: Path) -> InputError:
    """Where the first byte stands that is not UTF-8."""
    offset = 0
    with (
        _open_bytes(path) as binary,
        TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline="") as stream,
    ):
        for line, text in enumerate(read_lines(path, stream), start=1):
            if found := re.search(r"[\udc80-\udcff]", text):
                offset += len(text[: found.start()].encode())
                return InputError(
                    f"{path}, line {line}: byte {ord(found[0]) - 0xDC00:#04x} at offset {offset} "
                    "is not UTF-8. Save the file as UTF-8."
                )
            offset += len(text.encode())
    return InputError(f"{path} is not UTF-8. Save the file as UTF-8.")
