"""Text files as an input may come: UTF-8 with or without BOM, any line ends, perhaps gzipped."""

import gzip
import re
import shlex
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO, cast

from mmrag_batch.errors import InputError, MissingError

MAX_RATIO = 200
"""Most bytes that a gzip file may unpack to for each of its own, past UNCHECKED of them: a table
stays below 100, a bomb comes near 1,032 (RFC 1951)."""
UNCHECKED = 64 * 2**20
MAX_LINE = 64 * 2**20
"""Most characters in one line: a file without line ends (a gzip bomb, say) must not fill memory."""


_HOW_TO_CONVERT = (
    "Say what it is and convert it, as in `iconv -f CP1252 -t UTF-8 old.csv > new.csv`."
)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The text of a file after its BOM, unpacked if it ends in `.gz`, its line ends untouched.

    Raises MissingError (no such file) and InputError (not UTF-8, or a damaged gzip file).
    """
    with _open_bytes(path) as binary:
        try:
            if binary.read(len(BOM_UTF8)) != BOM_UTF8:
                binary.seek(0)
            with TextIOWrapper(binary, encoding="utf-8", newline="") as stream:
                yield stream
        except UnicodeDecodeError:
            raise _bad_byte(path) from None


def _open_bytes(path: Path) -> IO[bytes]:
    check_file(path)
    try:
        if path.name.lower().endswith(".gz"):
            return cast(IO[bytes], _CheckedGzip(path))
        return path.open("rb")
    except OSError as error:
        raise MissingError(f"{path} cannot be opened: {error.strerror}.") from error


class _CheckedGzip(gzip.GzipFile):
    """Raises InputError where it is damaged, or has unpacked to more than a table would."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._path = path
        self._max_bytes = max(UNCHECKED, MAX_RATIO * path.stat().st_size)

    def read(self, size: int | None = -1) -> bytes:
        with self._telling():
            return super().read(size)

    def read1(self, size: int = -1) -> bytes:
        with self._telling():
            data = super().read1(size)
        if self.tell() > self._max_bytes:
            raise InputError(
                f"{self._path} unpacks to over {MAX_RATIO} times its size, as no table should. If "
                f"it is one, unpack it: gzip -d {shlex.quote(str(self._path))}"
            )
        return data

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{self._path} is truncated or no gzip file: {error}. Copy or compress it again."
            ) from error


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
            if match := re.search(r"[\udc80-\udcff]", text):
                offset += len(text[: match.start()].encode())
                return InputError(
                    f"{path}, line {line}: byte {ord(match[0]) - 0xDC00:#04x} at offset {offset} "
                    f"is not UTF-8. {_HOW_TO_CONVERT}"
                )
            offset += len(text.encode())
    return InputError(f"{path} is not UTF-8. {_HOW_TO_CONVERT}")
