"""The pages of a PDF as pictures and as texts, by PDFium.

Nothing of a PDF bounds what it costs, so this runs in the helper process of `guard.py` alone. No
script in it is run, and nothing that it names is opened.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.pixels import KEPT_PIXELS, MAX_ASPECT

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

MAX_PAGES = 500
"""Pages of a file that are read where none is named."""
MAX_TEXT = 50_000
"""Characters of a page; a broadsheet has 30,000."""
MAX_SCALE = 8.0
"""Pixels for a point, which is 1/72 inch."""
_PASSWORD = 4
"""What PDFium calls it that a file needs a password; it may be what it said of another one."""
_UNUSABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What no text of a table may hold, and the marks of hyphens at line ends."""


def render(data: bytes, page: int) -> Image.Image:
    """A page, from 1, on white and with its annotations, at the scale that gives KEPT_PIXELS.

    Raises RowError: `page_missing`, `image_corrupt`, `image_unsupported` (it needs a password),
    `image_bad_aspect`, `image_too_costly` (no memory for it).
    """
    with _opened(data) as document:
        sheet = _page(document, page)
        width, height = sheet.get_size()
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise RowError("image_corrupt", f"a page of {width} x {height} points")
        if max(width, height) > MAX_ASPECT * min(width, height):
            ratio = f"{width:.0f} x {height:.0f} points, sides over {MAX_ASPECT} to 1"
            raise RowError("image_bad_aspect", ratio)
        scale = min(MAX_SCALE, math.sqrt(KEPT_PIXELS / width / height))
        picture: Image.Image = sheet.render(scale=scale).to_pil()
        return picture.convert("RGB")


def read_texts(data: bytes, page: int | None) -> list[str | None]:
    """The text of a page, or of each of at most MAX_PAGES pages; None for one without.

    Raises what `render` does, and `image_too_large` for too many pages.
    """
    with _opened(data) as document:
        if page is not None:
            return [_text(_page(document, page))]
        if len(document) > MAX_PAGES:
            many = f"a PDF of {len(document):,} pages, over {MAX_PAGES}"
            raise RowError("image_too_large", f"{many}; name those that matter: {_EXAMPLE}")
        return [_text(_page(document, number + 1)) for number in range(len(document))]


_EXAMPLE = "`manual.pdf#page=1`"


def several_pages(count: int) -> RowError:
    """The error of a PDF where there is room for one page."""
    return RowError("page_missing", f"a PDF of {count} pages; say which of them: {_EXAMPLE}")


@contextmanager
def _opened(data: bytes) -> Iterator["PdfDocument"]:
    """The file, with what goes wrong in it as a RowError."""
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        document = PdfDocument(data)
        try:
            if not len(document):
                raise RowError("image_corrupt", "a PDF without a page")
            yield document
        finally:
            document.close()
    except RowError:
        raise
    except MemoryError:
        raise RowError("image_too_costly", "there is not enough memory for it") from None
    except PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD and b"/Encrypt" in data:
            message = "a PDF that needs a password; save it without one"
            raise RowError("image_unsupported", message) from None
        raise RowError("image_corrupt", f"not a whole PDF: {error}") from None
    except Exception as error:  # whatever a hostile file may make of its library
        raise RowError("image_corrupt", f"{type(error).__name__}: {error}") from error


def _page(document: "PdfDocument", page: int) -> "PdfPage":
    if not 0 < page <= len(document):
        message = f"there is no page {page}; it has pages 1 to {len(document)}"
        raise RowError("page_missing", message)
    return document[page - 1]


def _text(page: "PdfPage") -> str | None:
    text_page = page.get_textpage()
    try:
        text = text_page.get_text_bounded()[:MAX_TEXT]
    finally:
        text_page.close()
        page.close()
    lines = (" ".join(_UNUSABLE.sub("", line).split()) for line in re.split(r"[\r\n]+", text))
    return "\n".join(filter(None, lines)) or None
