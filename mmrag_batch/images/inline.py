"""Images that stand in the table itself, in base64, with or without the head of a data URI."""

import base64
import binascii
import re

from mmrag_batch.errors import RowError
from mmrag_batch.images import files
from mmrag_batch.sources import split_inline

_TYPES = re.compile(
    r"data:(image/.*|application/pdf.*|(application|binary)/octet-stream.*|[;,].*)", re.IGNORECASE
)
_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def read_inline(source: str) -> bytes:
    """The bytes of an image in a text. Line breaks, base64 for URLs and left-out padding are read;
    RowError `image_denied`, `image_corrupt`, `image_too_large` for the rest."""
    head, body = split_inline(source)
    if head and not (_TYPES.match(head) and head.lower().endswith(";base64,")):
        kind = head[5:].rstrip(",") or "nothing"
        raise RowError("image_denied", f"expected data:image/...;base64,... and found {kind}")
    if len(body) > files.MAX_BYTES * 3 // 2:  # with line breaks
        raise files.too_large()
    body = _SPACE.sub("", body).translate(_URL_SAFE).rstrip("=")
    if len(body) * 3 // 4 > files.MAX_BYTES:
        raise files.too_large()
    if len(body) % 4 == 1:
        raise RowError("image_corrupt", "not valid base64: it was cut off")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("image_corrupt", f"not valid base64: {error}") from None
