"""One row as a page shows it: cut to a size that bounds that of the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mmrag_batch.records import Document, Row
from mmrag_batch.report.explanation import Answered
from mmrag_batch.report.sample import Reason
from mmrag_batch.report.thumbnails import Thumbnail, Thumbnails
from mmrag_batch.sources import name_page, split_page
from mmrag_batch.table.truth import find_ranks

QUESTION_SIDE, DOCUMENT_SIDE = 256, 144
"""Pixels of a picture's longer side."""
LONGEST_QUESTION, LONGEST_TEXT, LONGEST_WORD = 2000, 400, 200
"""Characters of a question; of a document or an answer; of a choice or a name."""
MOST_DOCUMENTS, MOST_MISSED = 6, 3
"""Documents that were kept; relevant ones that were not."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice and its probability."""

    text: str
    probability: float | None
    is_label: bool
    is_predicted: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A document; without a rank, it is relevant and was not kept."""

    id: str
    rank: int | None
    score: float | None
    text: str | None
    picture: Thumbnail | None
    is_relevant: bool


@dataclass(frozen=True, slots=True)
class Other:
    """What another run answered; `flip` says which way it went, if it did."""

    prediction: str | None
    confidence: float | None
    outcome: str
    flip: str


@dataclass(frozen=True, slots=True)
class Card:
    """A row. `outcome` is right, wrong, no answer, abstained or no label; `evidence` says whether a
    relevant document was kept; `groups` are the values of columns that make groups; `command`
    explains it; `hidden_items` counts documents that are left out."""

    number: int
    id: str
    reason: Reason
    outcome: str
    status: str
    evidence: str
    question: str
    picture: Thumbnail | None
    choices: tuple[Choice, ...]
    right_answers: tuple[str, ...]
    prediction: str | None
    confidence: float | None
    confidence_per_token: float | None
    items: tuple[Item, ...]
    hidden_items: int
    error: str | None
    groups: Mapping[str, str]
    command: str
    other: Other | None = None


def find_outcome(right: object, status: str) -> str:
    """An answer in a word; `right` is None where no label says it."""
    if status in ("error", "abstained"):
        return "no answer" if status == "error" else status
    return "no label" if right is None else "right" if right else "wrong"


def make_card(
    row: Row,
    answer: Answered,
    reason: Reason,
    right: object,
    *,
    number: int,
    groups: Mapping[str, str],
    command: str,
    thumbnails: Thumbnails,
    other: Other | None = None,
) -> Card:
    """A row of an output; `right` is what counts as such, `number` its place in the run's table."""
    question = row.question
    documents = question.documents if question else ()
    relevant = (question.relevant if question else None) or frozenset()
    kept = [name for name, _ in answer.evidence]
    ranks = find_ranks(kept, relevant, documents)
    items = list(_items(answer, documents, relevant, ranks))
    shown = [one for one in items if one.rank is not None][:MOST_DOCUMENTS]
    shown += [one for one in items if one.rank is None][:MOST_MISSED]
    by_id = {document.id: document for document in documents}
    choices = list(_choices(row, answer))
    picture = question.image if question else None
    return Card(
        number=number,
        id=cut(row.id, LONGEST_WORD),
        reason=reason,
        outcome=find_outcome(right, answer.status),
        status=answer.status,
        evidence="" if not relevant else "kept" if ranks else "not kept",
        question=cut(str(row.cells.get("question_text") or ""), LONGEST_QUESTION),
        picture=None if picture is None else thumbnails.make(picture, QUESTION_SIDE),
        choices=tuple(choices),
        right_answers=tuple(cut(text, LONGEST_TEXT) for text in (question.answers[:5]))
        if question and not choices
        else (),
        prediction=None if answer.prediction is None else cut(answer.prediction, LONGEST_TEXT),
        confidence=answer.confidence,
        confidence_per_token=answer.confidence_per_token,
        items=tuple(_fill(one, by_id, thumbnails) for one in shown),
        hidden_items=len(items) - len(shown),
        error=None if answer.error is None else cut(answer.error, LONGEST_TEXT),
        groups=groups,
        command=command,
        other=other,
    )


def cut(text: str, length: int) -> str:
    """The beginning of a text, and how long it is where that is not all."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"


def _choices(row: Row, answer: Answered) -> Iterator[Choice]:
    if row.question is None:
        return
    for index, text in enumerate(row.question.choices):
        probability = answer.probabilities[index] if index < len(answer.probabilities) else None
        is_label = index == row.question.label
        yield Choice(cut(text, LONGEST_WORD), probability, is_label, index == answer.index)


def _items(
    answer: Answered,
    documents: Sequence[Document],
    relevant: frozenset[str],
    ranks: Sequence[int],
) -> Iterator[Item]:
    """The evidence, best first; then what is relevant and was not kept, not even a page of it."""
    names = {name for name, _ in answer.evidence}
    wholes = {split_page(name)[0] for name in names} & {document.id for document in documents}
    for rank, (name, score) in enumerate(answer.evidence, start=1):
        yield Item(name, rank, score, None, None, rank in ranks)
    for name in sorted(relevant - names - wholes):
        yield Item(name, None, None, None, None, is_relevant=True)


def _fill(item: Item, by_id: Mapping[str, Document], thumbnails: Thumbnails) -> Item:
    """The item with its text and its picture; one that is not the row's own has none."""
    document = by_id.get(item.id)
    source = document.image if document else None
    if document is None:
        whole, page = split_page(item.id)
        document = by_id.get(whole)
        if document is not None and document.image is not None and page is not None:
            source = name_page(document.image, page)
    text = document.text if document else None
    return replace(
        item,
        id=cut(item.id, LONGEST_WORD),
        text=None if text is None else cut(text, LONGEST_TEXT),
        picture=None if source is None else thumbnails.make(source, DOCUMENT_SIDE),
    )
