"""What a table knows of its pictures and of its questions: what small encoders learn from.

A picture and a text are a pair where the text is the caption of the picture in a document, or a
question about it with its right answer. A question and a text are one where the text is that of a
document that `relevant` names.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from random import Random

from PIL.Image import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import with_pages
from mmrag_batch.progress import Progress
from mmrag_batch.records import Question
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.truth import read_labelled_rows, right_answer

Truths = dict[str, list[str]]
"""The source of a picture, or a question -> the texts that are true of it."""


def picture_truths(table: Path, names: Names = AS_THEY_ARE) -> dict[str, Truths]:
    """What is known of the pictures of a table, by their source and by how it is known: `caption`,
    in a document; `shown`, the answer to a question that shows it; `named`, to a question that it
    helps with."""
    kinds: dict[str, Truths] = {"caption": {}, "shown": {}, "named": {}}
    for question in _questions(table, names):
        for document in question.documents:
            if document.image is not None and document.text is not None:
                _add(kinds["caption"], document.image, document.text)
        source = asked_picture(question)
        if source is not None and (answer := right_answer(question)) is not None:
            statement = f"{question.text} {answer}"
            _add(kinds["shown" if question.image else "named"], source, statement)
    return kinds


def text_truths(table: Path, names: Names = AS_THEY_ARE) -> Truths:
    """The texts of the documents that help each question."""
    truths: Truths = {}
    for question in _questions(table, names):
        for document in question.documents:
            if document.text is not None and document.id in (question.relevant or ()):
                _add(truths, question.text, document.text)
    return truths


def _add(truths: Truths, left: str, text: str) -> None:
    known = truths.setdefault(left, [])
    if text not in known:
        known.append(text)


def asked_picture(question: Question) -> str | None:
    """The picture that a question is about: its own, or that of the one document that helps."""
    if question.image is not None:
        return question.image
    relevant = [d for d in question.documents if d.id in (question.relevant or ())]
    return relevant[0].image if len(relevant) == 1 else None


def load_pictures(table: Path, sources: Collection[str]) -> Iterator[tuple[str, Image]]:
    """The pictures of a table that can be read, with their sources."""
    images = ImageLoader(table.parent)
    with Progress("Reading pictures", len(sources), "pictures") as progress:
        for source in progress.each(sources):
            with suppress(RowError):
                yield source, images.load(source)


def hold_out(sources: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the pictures, at random."""
    pictures = sorted(sources)
    return set(Random(seed).sample(pictures, round(share * len(pictures))))


class Sampler:
    """Draws texts that are true of pictures, or of questions: what is known of few more often, for
    it tells more than what is true of most."""

    def __init__(self, truths: Truths, random: Random) -> None:
        self._random = random
        self._truths = truths
        self._sets = {left: set(texts) for left, texts in truths.items()}
        counts = Counter(chain.from_iterable(truths.values()))
        self._weights = {
            left: [1 / counts[text] for text in texts] for left, texts in truths.items()
        }

    def draw(self, lefts: Sequence[str]) -> tuple[list[str], list[list[bool]]]:
        """A text for each of B lefts, and whether text j is true of left i (B, B)."""
        texts = [self._random.choices(self._truths[left], self._weights[left])[0] for left in lefts]
        return texts, [[text in self._sets[left] for text in texts] for left in lefts]


def _questions(table: Path, names: Names) -> Iterator[Question]:
    """The questions of a table, with the pages of their PDFs."""
    images = ImageLoader(table.parent)
    for row in read_labelled_rows(table, names=names):
        if row.question is not None:
            yield with_pages(row.question, images)
