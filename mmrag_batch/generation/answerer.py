"""The generation stage: rows with evidence in, rows with a prediction (or an error) out."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from mmrag_batch.errors import InternalError, RowError
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.choices import choose
from mmrag_batch.generation.engine import Engine
from mmrag_batch.generation.rendering import Rendering
from mmrag_batch.prompt import Prompt, PromptSpec, answer_texts, build_prompt
from mmrag_batch.records import Evidence, Prediction, Problem, Question, Row
from mmrag_batch.sources import document_problem
from mmrag_batch.stages import ImageStore, pixel_bytes, prefetch

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
PREPARED = 16
"""Rows whose prompt and images are made ready while the engine works."""
PREPARED_BYTES = 128 * 2**20
"""What their images may take."""
ENGINE_BYTES = 512 * 2**20
"""What the images of the rows that the engine has may take, each of them once. Beyond that it gets
no more until it has answered those."""


class Answerer:
    """Asks an engine about every row that has no error, and files its answers.

    `row.evidence` is cut to what the generator saw: a document whose image cannot be loaded is left
    out and noted in `row.problems`, and the lowest-ranked are dropped where the prompt would exceed
    the spec's `max_prompt_tokens`.
    """

    def __init__(
        self,
        renderer: Rendering,
        engine: Engine,
        images: ImageStore,
        spec: PromptSpec,
    ) -> None:
        self._renderer = renderer
        self._engine = engine
        self._images = images
        self._spec = spec
        # Pending, bypassed, and prepared with a row at either end of the thread's queue.
        self.window = 2 * engine.window + PREPARED + 2

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        prepared = prefetch(
            map(self._prepare, rows), PREPARED, size_of=_prepared_bytes, budget=PREPARED_BYTES
        )
        pending: dict[int, Row] = {}
        in_engine = _ImagesInEngine()
        held_back: list[_Prepared] = []
        bypassed: deque[Row] = deque()
        exhausted = False

        def requests() -> Iterator[AnswerRequest]:
            """What to ask; ends early to let out rows that need no answer, should they pile up, and
            to get back images."""
            nonlocal exhausted
            for row, request in chain(_drain(held_back), prepared):
                if request is None:
                    bypassed.append(row)
                    if len(bypassed) >= self._engine.window:
                        return
                elif pending and in_engine.bytes_with(request.images) > ENGINE_BYTES:
                    held_back.append((row, request))
                    return
                else:
                    pending[request.key] = row
                    in_engine.add(request)
                    yield request
            exhausted = True

        while not exhausted:
            for result in ask(self._engine, requests()):
                in_engine.remove(result.key)
                yield _set_answer(pending.pop(result.key), result)
                while bypassed:
                    yield bypassed.popleft()
            if pending:
                raise InternalError(f"The engine gave no answer to {len(pending)} rows.")
            yield from bypassed
            bypassed.clear()

    def _prepare(self, row: Row) -> "_Prepared":
        """The row and what to ask about it: nothing if it has, or now gets, an error."""
        if row.error is not None:
            return row, None
        assert row.question is not None  # the reader sets a question or an error
        try:
            request = self._request(row, row.question)
        except RowError as error:
            row.error = Problem(error.code, str(error))
            return row, None
        if len(request.options) == 1:  # there is nothing to choose
            row.prediction = choose(row.question.choices, (1.0,))
            return row, None
        return row, request

    def _request(self, row: Row, question: Question) -> AnswerRequest:
        prompt, token_ids, images = fit_row(row, question, self._renderer, self._images, self._spec)
        return AnswerRequest(
            key=row.number,
            token_ids=tuple(token_ids),
            images=tuple(images[source] for source in prompt.images),
            options=tuple(
                self._renderer.answer_ids(answer)
                for answer in answer_texts(question, self._spec.scoring)
            ),
            messages=prompt.messages,
        )


_Prepared = tuple[Row, AnswerRequest | None]


def _drain(items: list[T]) -> Iterator[T]:
    while items:
        yield items.pop()


def _prepared_bytes(prepared: _Prepared) -> int:
    images = () if prepared[1] is None else prepared[1].images
    return sum(map(pixel_bytes, images))


class _ImagesInEngine:
    """What the images of pending requests take; one that many rows show is in memory once."""

    def __init__(self) -> None:
        self._images: dict[int, tuple[Image, ...]] = {}
        self._shown: Counter[int] = Counter()
        self._bytes = 0

    def bytes_with(self, images: tuple["Image", ...]) -> int:
        if not images:
            return self._bytes
        new = {id(image): image for image in images if not self._shown[id(image)]}
        return self._bytes + sum(map(pixel_bytes, new.values()))

    def add(self, request: AnswerRequest) -> None:
        if not request.images:
            return
        self._bytes = self.bytes_with(request.images)
        self._images[request.key] = request.images
        self._shown.update(map(id, request.images))

    def remove(self, key: int) -> None:
        for image in self._images.pop(key, ()):
            self._shown[id(image)] -= 1
            if not self._shown[id(image)]:
                del self._shown[id(image)]
                self._bytes -= pixel_bytes(image)


def fit_row(
    row: Row, question: Question, renderer: Rendering, store: ImageStore, spec: PromptSpec
) -> tuple[Prompt, Sequence[int], "dict[str, Image]"]:
    """The prompt of a row, its tokens as `fit_prompt` gives them, and its images by source. What
    was in the way leaves `row.evidence`: documents whose image cannot be loaded, which are noted in
    `row.problems`, and the lowest-ranked of a prompt that would be too long.

    Raises RowError where the question's own image is broken, or not even the question fits.
    """
    images: dict[str, Image] = {}
    is_complete = False
    while not is_complete:
        evidence, prompt, token_ids = fit_prompt(renderer, question, row.evidence, spec, images)
        is_complete = True  # unless a document leaves, or an image takes more than its placeholder
        for source in prompt.images:
            try:
                if source not in images:
                    images[source] = store.load(source)
                    is_complete &= not renderer.added_tokens(images[source])
            except RowError as error:
                if source == question.image:
                    raise RowError(error.code, f"question_image: {error}") from None
                _leave_out(row, source, error)
                is_complete = False
    row.evidence = evidence
    return prompt, token_ids, images


def _leave_out(row: Row, source: str, error: RowError) -> None:
    """Take the documents with a broken image out of a row's evidence, and say so."""
    unreadable = [item for item in row.evidence if item.document.image == source]
    row.evidence = tuple(item for item in row.evidence if item.document.image != source)
    row.problems += [document_problem(item.document, error) for item in unreadable]


def fit_prompt(
    renderer: Rendering,
    question: Question,
    evidence: tuple[Evidence, ...],
    spec: PromptSpec,
    images: Mapping[str, "Image"],
) -> tuple[tuple[Evidence, ...], Prompt, Sequence[int]]:
    """The most evidence, best first, whose prompt fits; that prompt and its tokens. The text of the
    best one is cut where it fits in no other way. Of `images` the tokens are counted, by source;
    others count as their placeholder.

    Raises RowError where not even the question fits.
    """
    while True:
        prompt = build_prompt(question, evidence, spec)
        token_ids = renderer.render(prompt.messages)
        shown = [images[source] for source in prompt.images if source in images]
        length = len(token_ids) + sum(map(renderer.added_tokens, shown))
        if length <= spec.max_prompt_tokens:
            return evidence, prompt, token_ids
        if not evidence:
            raise RowError(
                "prompt_too_long",
                f"The question alone takes {length} tokens, the generator at most "
                f"{spec.max_prompt_tokens}; shorten it{', or its image' if shown else ''}.",
            )
        *better, last = evidence
        if not better:
            better = _cut(renderer, last, length - spec.max_prompt_tokens)
        evidence = tuple(better)


def _cut(renderer: Rendering, item: Evidence, surplus: int) -> list[Evidence]:
    """The evidence with a text of so many tokens less; nothing if that leaves nothing of it."""
    text = item.document.text or ""
    count = len(renderer.encode(text))
    kept = text[: len(text) * max(0, count - surplus) // max(1, count)]
    if len(kept) == len(text) or not (kept or item.document.image):
        return []
    return [replace(item, document=replace(item.document, text=kept or None))]


def _set_answer(row: Row, result: AnswerResult) -> Row:
    assert row.question is not None  # only rows with a question are asked about
    row.usage = result.usage
    if result.error is not None:
        row.error = result.error
    elif result.chosen is not None:
        row.prediction = Prediction(row.question.choices[result.chosen], result.chosen)
    elif row.question.choices:
        row.prediction = choose(row.question.choices, result.probabilities)
    else:
        row.prediction = Prediction(result.text, text_probability=result.text_probability)
    return row
