"""Images of a table: read once where memory allows, decoded once, shared by all who show them."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.fetch import MediaFetcher
from mmrag_batch.images.files import MAX_BYTES, read_file
from mmrag_batch.images.guard import decode_within_limits
from mmrag_batch.images.inline import read_inline
from mmrag_batch.images.pixels import settle_warnings
from mmrag_batch.images.recent import Recent
from mmrag_batch.sources import is_inline, is_url, unwrap
from mmrag_batch.stages import pixel_bytes

FILE_BYTES, FILES = 64 * 2**20, 512
"""Of encoded images that are kept."""
PIXEL_BYTES, IMAGES = 384 * 2**20, 16_384
"""Of decoded ones."""
_HOW_TO_FETCH = "download it, or name its host with --allow-media-domain"


class ImageLoader:
    """Images by source: a path under `root`, base64 in the text, or a URL on one of `hosts`.
    Thread-safe.

    `digest` and `load` share the last files read, so a file is normally read once; an image is
    decoded once while it is among the last ones, whatever its sources are. Both raise RowError:
    `image_missing`, `image_corrupt`, `image_unsupported`, `image_too_large`, `image_too_costly`,
    `image_bad_aspect`, `image_blank`, `path_denied` (outside the root, or no regular file),
    `image_denied` (a URL elsewhere).
    """

    def __init__(self, root: Path, *, hosts: Collection[str] = ()) -> None:
        self._root = root.resolve()
        self._fetch = MediaFetcher(hosts, max_bytes=MAX_BYTES) if hosts else None
        self._files: Recent[tuple[bytes, str]] = Recent(FILE_BYTES, FILES)
        self._decoded: Recent[Image.Image | RowError] = Recent(PIXEL_BYTES, IMAGES)
        settle_warnings()

    def digest(self, source: str) -> str:
        """The SHA-256 (hex) of the image's bytes, found without decoding them."""
        return self._named(source)[1]

    def load(self, source: str) -> Image.Image:
        """The first frame of the image, upright, in RGB with transparency on white, and no larger
        than a model can make use of. Others have it as well: it is not to be changed."""
        data, digest = self._named(source)
        image = self._decoded.get(digest)
        if image is None:
            try:
                image = decode_within_limits(data)
                self._decoded.put(digest, image, pixel_bytes(image))
            except RowError as error:
                image = error
                self._decoded.put(digest, error, 0)
        if isinstance(image, RowError):
            raise _about(source, image)
        return image

    def _named(self, source: str) -> tuple[bytes, str]:
        """The bytes of an image and their digest."""
        file = self._files.get(source)
        if file is None:
            try:
                data = self._read(source)
            except RowError as error:
                raise _about(source, error) from None
            file = data, hashlib.sha256(data).hexdigest()
            self._files.put(source, file, len(data) + len(source))
        return file

    def _read(self, source: str) -> bytes:
        if is_inline(source):
            return read_inline(source)
        if not is_url(source):
            return read_file(self._root, source)
        if self._fetch is None:
            raise RowError("image_denied", f"URLs are not fetched; {_HOW_TO_FETCH}")
        return self._fetch(unwrap(source))


def _about(source: str, error: RowError) -> RowError:
    name = repr(source) if len(source) <= 120 else repr(source[:117] + "...")
    return RowError(error.code, f"{name}: {error}")
