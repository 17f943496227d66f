"""Documents in the order in which a row has them, for tables that were ranked elsewhere."""

from collections.abc import Iterator, Sequence

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import RowError
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Evidence, Row
from mmrag_batch.retrieval.candidates import Candidates, digest_files
from mmrag_batch.settings import PredictSettings
from mmrag_batch.sources import document_problem
from mmrag_batch.stages import ImageStore


class GivenDocuments:
    """The first `top_k` documents of a row that can be read, each with a score of 0: nobody here
    compared them."""

    def __init__(self, images: ImageStore, *, top_k: int) -> None:
        self._images = images
        self._top_k = top_k

    def find(self, rows: Sequence[Row], /) -> list[tuple[Evidence, ...]]:
        """Those of each row, in its order."""
        return [tuple(self._find(row)) for row in rows]

    def _find(self, row: Row) -> Iterator[Evidence]:
        if row.error is not None or row.question is None:
            return
        row.images = digest_files(row.question, self._images)
        room = self._top_k
        for document in with_pages(row.question, self._images).documents:
            if not room:
                return
            try:
                if document.image is not None:
                    self._images.digest(document.image)
            except RowError as error:
                row.problems.append(document_problem(document, error))
            else:
                room -= 1
                yield Evidence(document, 0.0)


def open_given_documents(
    settings: PredictSettings, bundle: Bundle, images: ImageStore, _: int | None
) -> Candidates:
    """The documents that stand in the rows themselves, as they stand there."""
    top_k = bundle.manifest.generator.top_k if settings.top_k is None else settings.top_k
    return GivenDocuments(images, top_k=top_k)
