"""Question + evidence -> chat messages: the one prompt, for training and for predicting.

The question's own image and the evidence images come first, then the evidence texts, the question
and its lettered choices. Everything a table can contain stands in text parts, which are tokenised
as plain text (see `generation/rendering.py`), so no input can become a special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from mmrag_batch.records import Evidence, Question

TEMPLATE_VERSION = 1
LETTERS = ascii_uppercase
"""One letter a choice, so a question has at most 26."""

Scoring = Literal["letter", "text"]
"""How a generator was trained to choose. `letter`: the prompt shows the choices with letters, of
which one is the answer. `text`: the question is put as a free-form one, and the text of each choice
is scored as its answer."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """How prompts are made: at most so many images and tokens, and how choices are put."""

    max_images: int
    max_prompt_tokens: int
    scoring: Scoring


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


def build_prompt(
    question: Question, evidence: Sequence[Evidence], *, max_images: int, scoring: Scoring
) -> Prompt:
    """The prompt of a question with its evidence, best first.

    At most `max_images` images are shown: the question's own, then those of the evidence by rank.
    """
    images = [question.image] if question.image is not None else []
    notes = []
    for rank, item in enumerate(evidence, start=1):
        words = [f"[{rank}]"]
        if item.document.image is not None and len(images) < max_images:
            images.append(item.document.image)
            words.append("(picture)")
        if item.document.text is not None:
            words.append(item.document.text)
        if len(words) > 1:
            notes.append(" ".join(words))

    blocks = []
    if notes:
        blocks.append("Evidence:\n" + "\n".join(notes))
    blocks.append("Question: " + question.text)
    if question.choices and scoring == "letter":
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices)]
        blocks.append("\n".join(lines))
        blocks.append("Answer with the letter.")
    else:
        blocks.append("Answer in a few words.")

    content: list[dict[str, str]] = [{"type": "image"} for _ in images]
    content.append({"type": "text", "text": "\n\n".join(blocks)})
    return Prompt(messages=({"role": "user", "content": content},), images=tuple(images))
