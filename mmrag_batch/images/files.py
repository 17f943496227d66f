"""The bytes of image files: only regular files inside the image root, however their path is
written, and no link that leads out of it."""

import errno
import os
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

from mmrag_batch.errors import RowError
from mmrag_batch.sources import describe, spellings

MAX_BYTES = 64 * 2**20
"""Most bytes of an encoded image."""
_BRANCHES = 8
_LISTED = 50_000
"""Names of a folder up to which one that is written a little differently is looked for."""


def read_file(root: Path, source: str) -> bytes:
    """The file that a source names. Where there is none of that name, what else the source may mean
    is tried: without its quotes, with other separators, in another letter case.

    Raises RowError: `image_missing`, `path_denied`, `image_too_large`.
    """
    problem = RowError("path_denied", "expected a path below the image root")
    try:
        for spelling in spellings(source):
            parts = _parts_below(root, spelling)
            try:
                return _read(root, parts)
            except RowError as error:
                if error.code != "image_missing":
                    raise
                problem = error
            similar = _similar(root, parts)
            if len(similar) == 1:
                return _read(root, _parts_below(root, similar[0]))
            if similar:
                names = " and ".join(map(repr, similar))
                raise RowError("image_missing", f"no such file, but {names}; which of them?")
    except RowError as error:
        problem = error
    raise RowError(problem.code, f"{problem}{describe(source)}")


def _read(root: Path, parts: tuple[str, ...]) -> bytes:
    try:
        descriptor = _open_below(root, parts)
        try:
            return _read_regular(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise RowError("image_missing", "no such file below the image root") from None
    except OSError as error:
        # ELOOP: the path was free of links when it was resolved, so one was put there since.
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP)
        code = "path_denied" if denied else "image_missing"
        raise RowError(code, f"cannot be read: {error.strerror}") from None


def _read_regular(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise RowError("path_denied", "not a regular file")
    if status.st_size > MAX_BYTES:
        raise too_large()
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        return stream.read(status.st_size)


def too_large() -> RowError:
    """The error of an image of too many bytes."""
    return RowError("image_too_large", f"over {MAX_BYTES >> 20} MiB")


def _parts_below(root: Path, source: str) -> tuple[str, ...]:
    """The path from `root` to a source, links resolved; RowError where it leads out of `root`."""
    if source.startswith("~/"):
        raise RowError("path_denied", "expected a path below the image root")
    try:
        path = (root / source).resolve()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        raise RowError("image_missing", "no usable path") from None
    if not path.is_relative_to(root):
        raise RowError("path_denied", "outside the image root")
    return path.relative_to(root).parts


def _open_below(root: Path, parts: tuple[str, ...]) -> int:
    """A descriptor of the file at `parts` below `root`, opened step by step without following a
    link, so that nothing swapped in meanwhile can lead out. Does not wait for a FIFO's writer."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, part in enumerate(parts, start=1):
        kind = os.O_NONBLOCK if number == len(parts) else os.O_DIRECTORY
        try:
            inner = os.open(part, flags | kind, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _similar(root: Path, parts: tuple[str, ...]) -> list[str]:
    """The paths whose names differ from `parts` in letter case and composed accents alone."""
    paths = [""]
    for part in parts:
        paths = [
            str(Path(path) / name)
            for path in paths[:_BRANCHES]
            for name in _names(root / path).get(_fold(part), ())
        ]
    return paths if parts else []


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _names(folder: Path) -> dict[str, list[str]]:
    """The names in a folder by their folded form; none where it cannot be listed, or is huge."""
    try:
        return _names_at(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=8)
def _names_at(folder: Path, _changed: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _LISTED:
                return {}
            names.setdefault(_fold(entry.name), []).append(entry.name)
    return names
