"""Decoding with a limit on its time and memory. Images that cost what their size says are decoded
here; others in a helper process, which a costly one ends, and which begins with the first of them.
"""

import json
from typing import Any

from PIL import Image

from mmrag_batch.confined import Confined, EndedError, Message, serve_requests
from mmrag_batch.errors import RowError
from mmrag_batch.images import pdf
from mmrag_batch.images.cost import is_plain
from mmrag_batch.images.formats import find_format
from mmrag_batch.images.pixels import decode, settle_warnings

SECONDS = 15
"""Of a processor, for one image; the formats that take longest need 5 for the most pixels."""
TEXT_SECONDS = 4 * SECONDS
"""For the texts of all pages of a PDF."""
MEMORY = 3 * 2**30
"""Bytes of the helper's address space."""


def decode_within_limits(data: bytes) -> Image.Image:
    """What `decode` gives. Raises RowError also for `image_too_costly`."""
    kind = find_format(data)
    return decode(data, kind) if is_plain(kind, data) else _HELPER.decode(data, kind)


def render_within_limits(data: bytes, page: int) -> Image.Image:
    """What `pdf.render` gives, in the same way."""
    return _HELPER.decode(data, "PDF", page)


def read_texts_within_limits(data: bytes, page: int | None) -> list[str | None]:
    """What `pdf.read_texts` gives, in the same way."""
    return _HELPER.read_texts(data, page)


class Helper:
    """A process that decodes one image at a time, within `seconds` of a processor each and `memory`
    bytes of its address space, or reads the texts of a PDF within `text_seconds`. Thread-safe."""

    def __init__(
        self, *, seconds: int = SECONDS, text_seconds: int = TEXT_SECONDS, memory: int = MEMORY
    ) -> None:
        self._seconds = seconds
        self._text_seconds = text_seconds
        self._memory = memory
        self._process = Confined(__name__)

    def decode(self, data: bytes, kind: str, page: int | None = None) -> Image.Image:
        """The image, of a PDF that of a page. Raises RowError; a helper that dies of an image costs
        that image alone."""
        answer, pixels = self._ask({"kind": kind, "page": page}, data, self._seconds)
        return Image.frombytes("RGB", tuple(answer["size"]), pixels)

    def read_texts(self, data: bytes, page: int | None) -> list[str | None]:
        """The texts of a PDF. Raises RowError in the same way."""
        request = {"kind": "texts", "page": page}
        texts: list[str | None] = json.loads(self._ask(request, data, self._text_seconds)[1])
        return texts

    def _ask(self, request: dict[str, Any], data: bytes, seconds: int) -> Message:
        try:
            answer = self._process.ask(request, data, seconds=seconds, memory=self._memory)
        except EndedError as error:
            raise _why(error, seconds) from None
        if "code" in answer[0]:
            raise RowError(answer[0]["code"], answer[0]["message"])
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        self._process.close()


def _why(error: EndedError, seconds: int) -> RowError:
    if error.by_limit:
        what = f"decoding it takes over {seconds} s, or too much memory"
        return RowError("image_too_costly", what)
    return RowError("image_corrupt", "its decoder crashed")


_HELPER = Helper()


def serve() -> None:
    """The helper, as `confined` runs it."""
    settle_warnings()

    def answer(asked: dict[str, Any], data: bytes) -> Message:
        try:
            return _answer(asked["kind"], asked["page"], data)
        except RowError as error:
            return {"code": error.code, "message": str(error)}, b""

    serve_requests(answer)


def _answer(kind: str, page: int | None, data: bytes) -> Message:
    if kind == "texts":
        return {}, json.dumps(pdf.read_texts(data, page)).encode()
    image = decode(data, kind) if page is None else pdf.render(data, page)
    return {"size": image.size}, image.tobytes()
