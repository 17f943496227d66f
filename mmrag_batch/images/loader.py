"""Images of a table, opened safely: only regular files inside the image root, only known raster
formats, only so many bytes and pixels, and no network but the hosts that a run allows."""

import base64
import binascii
import errno
import hashlib
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.fetch import MediaFetcher
from mmrag_batch.images.pixels import decode, settle_warnings

MAX_BYTES = 64 * 2**20
"""Most bytes of an encoded image."""
CACHE_BYTES = 64 * 2**20
CACHE_FILES = 512

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
_HOW_TO_FETCH = "download it, or name its host with --allow-media-domain"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class ImageLoader:
    """Images by source: a path under `root`, a `data:image/...;base64,` URI, or a URL on one of
    `hosts`. Thread-safe.

    `digest` and `load` share the last files read, so a file is normally read once. Both raise
    RowError: `image_missing`, `image_corrupt`, `image_too_large`, `image_bad_aspect`,
    `path_denied` (outside the root, or no regular file), `image_denied` (a URL elsewhere).
    """

    def __init__(self, root: Path, *, hosts: Collection[str] = ()) -> None:
        self._root = root.resolve()
        self._fetch = MediaFetcher(hosts, max_bytes=MAX_BYTES) if hosts else None
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._lock = threading.Lock()
        settle_warnings()

    def digest(self, source: str) -> str:
        """The SHA-256 (hex) of the image's bytes, found without decoding them."""
        return hashlib.sha256(self._read(source)).hexdigest()

    def load(self, source: str) -> Image.Image:
        """The first frame of the image, upright, in RGB with transparency on white."""
        return decode(self._read(source), _display_name(source))

    def _read(self, source: str) -> bytes:
        if source.startswith("data:"):
            return _read_data_uri(source)
        with self._lock:
            if source in self._recent:
                self._recent.move_to_end(source)
                return self._recent[source]
        if self._fetch is not None and _is_url(source):
            data = self._fetch(source, _display_name(source))
        else:
            data = _read_file(self._root, source)
        with self._lock:
            self._remember(source, data)
        return data

    def _remember(self, source: str, data: bytes) -> None:
        self._recent_bytes += len(data) - len(self._recent.pop(source, b""))
        self._recent[source] = data
        while self._recent_bytes > CACHE_BYTES or len(self._recent) > CACHE_FILES:
            _, evicted = self._recent.popitem(last=False)
            self._recent_bytes -= len(evicted)


def _is_url(source: str) -> bool:
    scheme = _SCHEME.match(source)
    return scheme is not None and scheme[0].lower() != "file://"


def _read_data_uri(source: str) -> bytes:
    match = _DATA_URI.match(source)
    if match is None:
        raise RowError(
            "image_denied", f"{_display_name(source)}: expected data:image/...;base64,..."
        )
    if len(source) - match.end() > MAX_BYTES * 4 // 3 + 4:
        raise _too_large(_display_name(source))
    try:
        return base64.b64decode(source[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(
            "image_corrupt", f"{_display_name(source)}: not valid base64: {error}"
        ) from None


def _read_file(root: Path, source: str) -> bytes:
    name = _display_name(source)
    parts = _parts_below(root, source, name)
    try:
        descriptor = _open_below(root, parts)
        try:
            return _read_regular(descriptor, name)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise RowError("image_missing", f"{name}: no such file below the image root") from None
    except OSError as error:
        # ELOOP: the path was free of links when it was resolved, so one was put there since.
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP)
        code = "path_denied" if denied else "image_missing"
        raise RowError(code, f"{name}: cannot be read: {error.strerror}") from None


def _read_regular(descriptor: int, name: str) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise RowError("path_denied", f"{name}: not a regular file")
    if status.st_size > MAX_BYTES:
        raise _too_large(name)
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        return stream.read(status.st_size)


def _parts_below(root: Path, source: str, name: str) -> tuple[str, ...]:
    """The path from `root` to a source, links resolved; RowError where it leads out of `root`."""
    scheme = _SCHEME.match(source)
    if _is_url(source):
        raise RowError("image_denied", f"{name}: URLs are not fetched; {_HOW_TO_FETCH}")
    if scheme or source.startswith("~/"):
        raise RowError("path_denied", f"{name}: expected a path below the image root")
    try:
        path = (root / source).resolve()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        raise RowError("image_missing", f"{name}: no usable path") from None
    if not path.is_relative_to(root):
        raise RowError("path_denied", f"{name}: outside the image root")
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


def _too_large(name: str) -> RowError:
    return RowError("image_too_large", f"{name}: over {MAX_BYTES >> 20} MiB")


def _display_name(source: str) -> str:
    return repr(source) if len(source) <= 120 else repr(source[:117] + "...")
