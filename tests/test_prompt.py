"""The two orders of a prompt."""

import pytest

from mmrag_batch.prompt import EVIDENCE_FIRST, IMAGES_FIRST, PromptSpec, build_prompt
from mmrag_batch.records import Document, Evidence, Question

EVIDENCE = tuple(
    Evidence(Document(name, text, image), 1.0)
    for name, text, image in [
        ("a", "A map.", "a.png"),
        ("b", None, "b.png"),
        ("c", "A note.", None),
    ]
)
NOTES = "Evidence:\n[1] (picture) A map.\n[2] (picture)\n[3] A note.\n\n"
ASKED = "Question: Which?\n\nA. this\nB. that\n\nAnswer with the letter."
IMAGE = "IMAGE"


def parts(template: int, image: str | None, evidence: tuple[Evidence, ...]) -> tuple[object, ...]:
    """What the user says, part by part, and the images in their order."""
    question = Question("Which?", image, ("this", "that"), ())
    prompt = build_prompt(question, evidence, PromptSpec(3, 1024, "letter", template))
    (message,) = prompt.messages
    return [part.get("text", IMAGE) for part in message["content"]], prompt.images


def test_images_come_first_or_what_rows_may_share() -> None:
    images = ("own.png", "a.png", "b.png")
    assert parts(IMAGES_FIRST, "own.png", EVIDENCE) == ([IMAGE] * 3 + [NOTES + ASKED], images)
    assert parts(EVIDENCE_FIRST, "own.png", EVIDENCE) == (
        [IMAGE, IMAGE, NOTES, IMAGE, ASKED],
        ("a.png", "b.png", "own.png"),
    )


@pytest.mark.parametrize("template", [IMAGES_FIRST, EVIDENCE_FIRST])
def test_without_evidence_or_an_own_image_both_are_the_same(template: int) -> None:
    assert parts(template, "own.png", ()) == ([IMAGE, ASKED], ("own.png",))
    assert parts(template, None, EVIDENCE) == ([IMAGE, IMAGE, NOTES + ASKED], ("a.png", "b.png"))


def test_the_questions_own_image_is_shown_before_any_other() -> None:
    question = Question("Which?", "own.png", (), ())
    prompt = build_prompt(question, EVIDENCE, PromptSpec(2, 1024, "text", EVIDENCE_FIRST))
    assert prompt.images == ("a.png", "own.png")
