"""Documents that are PDFs -> a document for each of their pages."""

from dataclasses import replace
from functools import lru_cache

from mmrag_batch.errors import RowError
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.sources import may_be_pdf, name_page, split_page
from mmrag_batch.stages import ImageStore, Page


def with_pages(question: Question, images: ImageStore) -> Question:
    """The question with the pages of its PDFs in place of them, each a document with the picture
    and the text of a page; `relevant` names the pages of what it named.

    The pages of a whole file are called by the document's id and their number, and a text of the
    document stands before that of each page. A document that names one page keeps its id, and a
    text of its own. One that cannot be read stays as it is: who loads its image is told why.
    """
    if not any(document.image for document in question.documents):
        return question
    pages = {document.id: _pages(document, images) for document in question.documents}
    if all(page == (document,) for document, page in zip(question.documents, pages.values())):
        return question
    relevant = question.relevant
    if relevant is not None:
        names = {name: [page.id for page in documents] for name, documents in pages.items()}
        relevant = frozenset(page for name in relevant for page in names.get(name, [name]))
    documents = {page.id: page for some in pages.values() for page in some}
    # What the row itself calls as a page of another document stands for that page.
    documents |= {name: some[0] for name, some in pages.items() if some[0].id == name}
    return replace(question, documents=tuple(documents.values()), relevant=relevant)


def row_with_pages(row: Row, images: ImageStore) -> Row:
    """The row, its question with the pages of its PDFs."""
    return replace(row, question=row.question and with_pages(row.question, images))


def _pages(document: Document, images: ImageStore) -> tuple[Document, ...]:
    if document.image is None or not may_be_pdf(document.image):
        return (document,)
    try:
        pages = images.pages(document.image)
    except RowError:
        pages = ()
    return _documents(document, pages) if pages else (document,)


@lru_cache(maxsize=16)  # rows that share a file share its pages
def _documents(document: Document, pages: tuple[Page, ...]) -> tuple[Document, ...]:
    if document.image is not None and split_page(document.image)[1] is not None:
        return tuple(replace(document, text=document.text or page.text) for page in pages)
    return tuple(
        Document(
            name_page(document.id, number),
            "\n".join(text for text in (document.text, page.text) if text) or None,
            page.source,
        )
        for number, page in enumerate(pages, start=1)
    )
