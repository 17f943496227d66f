"""One row through retrieval and rendering once more, without an engine. Nothing is written, and
nothing of the generator is loaded but its tokenizer and its template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import MmragError, RowError
from mmrag_batch.factory import load_bundle, open_rendering, open_retrieval
from mmrag_batch.generation.answerer import fit_row
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import Prompt
from mmrag_batch.records import Evidence, Problem, Row
from mmrag_batch.report.explanation import Sent
from mmrag_batch.retrieval.candidates import name_source
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import ImageStore

ALL = 10**6
"""Documents to rank: each that a row may have."""


@dataclass(slots=True)
class Again:
    """What was made once more: the documents ranked, those of them that were to be kept, the
    prompt; or why not."""

    ranked: tuple[Evidence, ...] = ()
    top_k: int | None = None
    prompt: Prompt | None = None
    sent: Sent | None = None
    unranked: str | None = None
    unsent: str | None = None
    notes: list[str] = field(default_factory=list)


def ask_again(settings: PredictSettings, row: Row, images: ImageStore) -> Again:
    """Rank a row's documents and make its prompt, as far as that can be done; `row` is as it is
    after that."""
    again = Again()
    if failure(row) is None:
        try:
            bundle = load_bundle(settings, weights=False)
            _rank(settings, bundle, row, images, again)
            if failure(row) is None:
                _render(settings, bundle, row, images, again)
        except MmragError as error:  # what is known without a bundle is shown all the same
            again.unsent = f"{error} Name another bundle with `--bundle DIR`."
    again.unsent = failure(row) or again.unsent
    if not again.ranked and again.sent is None:
        again.unranked = again.unsent
    return again


def failure(row: Row) -> str | None:
    """Why a row cannot be asked."""
    return None if row.error is None else f"{row.error.code}: {row.error.message}"


def _rank(
    settings: PredictSettings, bundle: Bundle, row: Row, images: ImageStore, again: Again
) -> None:
    """The evidence of a row; of its own documents, all that can be read are ranked."""
    top_k = bundle.manifest.generator.top_k if settings.top_k is None else settings.top_k
    asked = ALL if name_source(settings) == "row" else top_k
    alone = replace(settings, top_k=asked, engine="transformers")  # which leaves it all cores
    with open_retrieval(alone, bundle, images) as retrieve:
        [done] = retrieve([row])
    again.ranked, again.top_k = done.evidence, top_k
    row.evidence = done.evidence[:top_k]
    if bundle.manifest.retriever is None:
        again.unranked = f"{settings.bundle} has no retriever; rows are asked without documents."


def _render(
    settings: PredictSettings, bundle: Bundle, row: Row, images: ImageStore, again: Again
) -> None:
    """The prompt of a row, as its generator got it."""
    assert row.question is not None  # a row without an error has one
    renderer, spec = open_rendering(settings, bundle)
    try:
        prompt, ids, loaded = fit_row(row, row.question, renderer, images, spec)
    except RowError as error:
        row.error = Problem(error.code, str(error))
        return
    of_images = sum(renderer.added_tokens(loaded[source]) for source in prompt.images)
    is_rendered = isinstance(renderer, Renderer)
    if isinstance(renderer, Renderer):
        pieces, typed = renderer.show(ids), renderer.typed(ids)
    else:
        pieces, typed = _pieces(prompt), []
    again.prompt = prompt
    again.sent = Sent(
        tuple(pieces),
        prompt.images,
        len(ids) + of_images,
        spec.max_prompt_tokens,
        of_images,
        spec.max_images,
        is_rendered,
    )
    if len(row.question.choices) == 1:
        again.unsent = "It was not sent: there is one choice, and nothing to choose."
    again.notes += [
        f"{name} stands in a text of the row: to the generator these are characters."
        for name in typed
    ]


def _pieces(prompt: Prompt) -> list[str]:
    """The text of messages, cut behind each image."""
    pieces = [""]
    parts: Sequence[Mapping[str, Any]] = prompt.messages[0]["content"]
    for part in parts:
        if part["type"] == "image":
            pieces[-1] += "<image>"
            pieces.append("")
        else:
            pieces[-1] += part["text"]
    return pieces
