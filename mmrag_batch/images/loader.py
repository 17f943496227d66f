"""Images of a table: read once where memory allows, decoded once, shared by all who show them."""

import hashlib
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.fetch import MediaFetcher
from mmrag_batch.images.files import MAX_BYTES, read_file
from mmrag_batch.images.formats import find_format, is_pdf
from mmrag_batch.images.guard import (
    decode_within_limits,
    read_texts_within_limits,
    render_within_limits,
)
from mmrag_batch.images.inline import read_inline
from mmrag_batch.images.objects import ObjectFetcher
from mmrag_batch.images.pdf import several_pages
from mmrag_batch.images.pixels import settle_warnings
from mmrag_batch.images.recent import Recent
from mmrag_batch.remote import find_url
from mmrag_batch.sources import is_inline, is_url, name_page, split_page, unwrap
from mmrag_batch.stages import Page, pixel_bytes

FILE_BYTES, FILES = 64 * 2**20, 512
"""Of encoded images that are kept."""
PIXEL_BYTES, IMAGES = 384 * 2**20, 16_384
"""Of decoded ones."""
TEXT_BYTES, TEXTS = 128 * 2**20, 16_384
"""Of the texts of PDFs; so many bytes hold those of any file."""
INLINE_BYTES = 16 * 2**20
"""Of a PDF in the table itself, times its pages, each of which is named by all of it."""
_HOW_TO_FETCH = "download it, or name its host with --allow-media-domain"
_HOW_TO_OPEN = "name where it lies with --allow-remote"


class ImageLoader:
    """Images by source: a path under `root`, base64 in the text, a URL on one of `hosts`, or an
    object below one of `places` (`s3://bucket/pictures`), where `root` may be as well; of a PDF a
    page, as in `manual.pdf#page=12`. Thread-safe.

    `digest`, `load` and `pages` share the last files read, so a file is normally read once; an
    image is decoded once while it is among the last ones, whatever its sources are. All raise
    RowError: `image_missing`, `image_corrupt`, `image_unsupported`, `image_too_large`,
    `image_too_costly`, `image_bad_aspect`, `image_blank`, `page_missing`, `path_denied` (outside
    the root, or no regular file), `image_denied` (a URL elsewhere).
    """

    def __init__(
        self, root: Path, *, hosts: Collection[str] = (), places: Collection[str] = ()
    ) -> None:
        self._opened_with = (root, hosts, places)
        self._store = find_url(root)
        self._root = root if self._store else root.resolve()
        self._fetch = MediaFetcher(hosts, max_bytes=MAX_BYTES) if hosts else None
        self._objects = ObjectFetcher(places, max_bytes=MAX_BYTES) if places else None
        self._files: Recent[tuple[bytes, str]] = Recent(FILE_BYTES, FILES)
        self._decoded: Recent[Image.Image | RowError] = Recent(PIXEL_BYTES, IMAGES)
        self._pages: Recent[tuple[Page, ...] | RowError] = Recent(TEXT_BYTES, TEXTS)
        settle_warnings()

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened anew; what it holds stays here."""
        root, hosts, places = self._opened_with
        return partial(ImageLoader, hosts=hosts, places=places), (root,)

    def digest(self, source: str) -> str:
        """The SHA-256 (hex) of the image's bytes, found without decoding them; of a page, that of
        them and its number."""
        name, page = split_page(source)
        digest = self._named(name)[1]
        return digest if page is None else _digest(name_page(digest, page).encode())

    def load(self, source: str) -> Image.Image:
        """The first frame of the image, upright, in RGB with transparency on white, and no larger
        than a model can make use of; of a PDF the page that is named, or its only one. Others have
        it as well: it is not to be changed."""
        name, page = split_page(source)
        data, digest = self._named(name)
        if page is None and is_pdf(data):
            pages = self.pages(source)
            if len(pages) > 1:
                raise _about(source, several_pages(len(pages)))
            page = 1
        key = digest if page is None else name_page(digest, page)
        image = self._decoded.get(key)
        if image is None:
            try:
                image = _decode(data, page)
                self._decoded.put(key, image, pixel_bytes(image))
            except RowError as error:
                image = error
                self._decoded.put(key, error, 0)
        if isinstance(image, RowError):
            raise _about(source, image)
        return image

    def pages(self, source: str) -> tuple[Page, ...]:
        """The pages of a PDF, or the one that the source names, with their texts; none of any other
        image. A whole file may have `pdf.MAX_PAGES` of them."""
        name, page = split_page(source)
        data, digest = self._named(name)
        if not is_pdf(data):
            return ()
        key = f"{digest} {source}"
        pages = self._pages.get(key)
        if pages is None:
            try:
                pages = _read_pages(name, data, page)
                size = sum(len(one.source) + sys.getsizeof(one.text) for one in pages)
                self._pages.put(key, pages, len(key) + size)
            except RowError as error:
                pages = error
                self._pages.put(key, error, len(key))
        if isinstance(pages, RowError):
            raise _about(source, pages)
        return pages

    def _named(self, source: str) -> tuple[bytes, str]:
        """The bytes of an image and their digest."""
        file = self._files.get(source)
        if file is None:
            try:
                data = self._read(source)
            except RowError as error:
                raise _about(source, error) from None
            file = data, _digest(data)
            self._files.put(source, file, len(data) + len(source))
        return file

    def _read(self, source: str) -> bytes:
        if is_inline(source):
            return read_inline(source)
        if not is_url(source) and not self._store:
            return read_file(self._root, source)
        url = unwrap(source) if is_url(source) else f"{self._store}/{unwrap(source)}"
        if find_url(url):
            if self._objects is None:
                raise RowError("image_denied", f"{url} is not opened; {_HOW_TO_OPEN}")
            return self._objects(url)
        if self._fetch is None:
            raise RowError("image_denied", f"URLs are not fetched; {_HOW_TO_FETCH}")
        return self._fetch(url)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _decode(data: bytes, page: int | None) -> Image.Image:
    if page is None:
        return decode_within_limits(data)
    if (kind := find_format(data)) != "PDF":
        raise RowError("page_missing", f"a {kind} image, which has no pages to name")
    return render_within_limits(data, page)


def _read_pages(name: str, data: bytes, page: int | None) -> tuple[Page, ...]:
    find_format(data)  # is its library there?
    texts = read_texts_within_limits(data, page)
    if is_inline(name) and len(texts) > 1 and len(name) * len(texts) > INLINE_BYTES:
        what = f"a PDF of {len(texts)} pages in the table itself"
        raise RowError("image_too_large", f"{what}; save it as a file, and give its path")
    first = 1 if page is None else page
    named = [name_page(name, number) for number in range(first, first + len(texts))]
    return tuple(map(Page, named, texts))


def _about(source: str, error: RowError) -> RowError:
    name = repr(source) if len(source) <= 120 else repr(source[:117] + "...")
    return RowError(error.code, f"{name}: {error}")
