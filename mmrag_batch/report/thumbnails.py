"""Pictures of a table, small enough for a page and inside of it."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.recent import Recent
from mmrag_batch.report.plain import short
from mmrag_batch.stages import ImageStore

QUALITY = 72
"""Of a JPEG."""
KEPT_BYTES, KEPT = 16 * 2**20, 2048


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What a picture is called, and a small one as a `data:` URI with its width and height in
    pixels; or why it cannot be read."""

    source: str
    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str | None = None


class Thumbnails:
    """Thumbnails by source; those made last are kept, for rows that share a picture."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._made: Recent[Thumbnail] = Recent(KEPT_BYTES, KEPT)

    def make(self, source: str, side: int) -> Thumbnail:
        """The picture, its longer side at most `side` pixels."""
        key = f"{side} {source}"
        made = self._made.get(key)
        if made is None:
            try:
                made = _shrink(self._images.load(source), short(source), side)
            except RowError as error:
                made = Thumbnail(short(source), problem=f"{error.code}: {error}")
            self._made.put(key, made, len(key) + len(made.uri))
        return made


def _shrink(image: Image.Image, name: str, side: int) -> Thumbnail:
    small = image.copy()  # others have the image as well
    small.thumbnail((side, side))
    stream = BytesIO()
    small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    uri = f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"
    return Thumbnail(name, uri, *small.size)
