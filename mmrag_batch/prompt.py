"""Question + evidence -> chat messages: the one prompt, for training and for predicting.

Images come first, that of the question before those of the evidence, then the evidence texts, the
question and its lettered choices; or the evidence, images and texts, before all that is the row's
own. Everything a table can contain stands in text parts, which are tokenised as plain text (see
`generation/rendering.py`), so no input can become a special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from mmrag_batch.records import Evidence, Question

IMAGES_FIRST, EVIDENCE_FIRST = 1, 2
"""Prompt templates, by the number that a bundle carries. What many rows share, an engine that
caches prefixes computes once; a generator is asked in the order that it was tuned with."""
TEMPLATE_VERSIONS = (IMAGES_FIRST, EVIDENCE_FIRST)
LETTERS = ascii_uppercase
"""One letter a choice, so a question has at most 26."""

Scoring = Literal["letter", "text"]
"""How a generator was trained to choose. `letter`: the prompt shows the choices with letters, of
which one is the answer. `text`: the question is put as a free-form one, and the text of each choice
is scored as its answer."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """How prompts are made: at most so many images and tokens, how choices are put, and in which
    order all is."""

    max_images: int
    max_prompt_tokens: int
    scoring: Scoring
    template_version: int = IMAGES_FIRST


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one question asks of a generator.

    `messages` follow the chat format of Hugging Face templates: the user's content is a list of
    `{"type": "image"}` and `{"type": "text", "text": ...}` parts. `images` are the sources of the
    image parts, in order.
    """

    messages: tuple[dict[str, Any], ...]
    images: tuple[str, ...]


def answer_texts(question: Question, scoring: Scoring) -> tuple[str, ...]:
    """What a generator answers with to give each of the question's choices."""
    if scoring == "letter":
        return tuple(LETTERS[: len(question.choices)])
    return question.choices


def build_prompt(question: Question, evidence: Sequence[Evidence], spec: PromptSpec) -> Prompt:
    """The prompt of a question with its evidence, best first.

    At most `max_images` images are shown: the question's own, then those of the evidence by rank.
    """
    own = [question.image] if question.image is not None else []
    images: list[str] = []
    notes = []
    for rank, item in enumerate(evidence, start=1):
        words = [f"[{rank}]"]
        if item.document.image is not None and len(own) + len(images) < spec.max_images:
            images.append(item.document.image)
            words.append("(picture)")
        if item.document.text is not None:
            words.append(item.document.text)
        if len(words) > 1:
            notes.append(" ".join(words))

    shared = "Evidence:\n" + "\n".join(notes) + "\n\n" if notes else ""
    blocks = ["Question: " + question.text]
    if question.choices and spec.scoring == "letter":
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices)]
        blocks.append("\n".join(lines))
        blocks.append("Answer with the letter.")
    else:
        blocks.append("Answer in a few words.")

    asked = "\n\n".join(blocks)
    if own and notes and spec.template_version == EVIDENCE_FIRST:
        content = [*_shown(images), _said(shared), *_shown(own), _said(asked)]
        images = images + own
    else:
        images = own + images
        content = [*_shown(images), _said(shared + asked)]
    return Prompt(messages=({"role": "user", "content": content},), images=tuple(images))


def _shown(images: Sequence[str]) -> list[dict[str, str]]:
    return [{"type": "image"} for _ in images]


def _said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
