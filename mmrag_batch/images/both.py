"""Where the images of rows come from, and those of a corpus that they share."""

from typing import TYPE_CHECKING

from mmrag_batch.sources import CORPUS_FILE
from mmrag_batch.stages import ImageStore, Page

if TYPE_CHECKING:
    from PIL.Image import Image


class TableAndCorpus:
    """The images of a table and, where a source begins with CORPUS_FILE, those of a corpus, whose
    paths start elsewhere."""

    def __init__(self, table: ImageStore, corpus: ImageStore) -> None:
        self._table = table
        self._corpus = corpus

    def digest(self, source: str) -> str:
        """The SHA-256 (hex) of the image's bytes."""
        images, name = self._find(source)
        return images.digest(name)

    def load(self, source: str) -> "Image":
        """The decoded image."""
        images, name = self._find(source)
        return images.load(name)

    def pages(self, source: str) -> tuple[Page, ...]:
        """The pages of a PDF of the table; those of a corpus are documents of their own."""
        return () if source.startswith(CORPUS_FILE) else self._table.pages(source)

    def _find(self, source: str) -> tuple[ImageStore, str]:
        if source.startswith(CORPUS_FILE):
            return self._corpus, source.removeprefix(CORPUS_FILE)
        return self._table, source
