import re
from collections.abc import Iterable, Iterator
from random import Random

import pytest
from PIL.Image import Image

from mmrag_batch.train import demo_world as world
from mmrag_batch.train.demo_pairs import CAPTIONS, Pair, captioned, paraphrased, sentences


def matched(text: str, templates: Iterable[str]) -> Iterator[dict[str, str]]:
    """What stands in the places of each template that the text is written by."""
    for template in templates:
        parts = re.split(r"{(\w+)}", template)
        pattern = "".join(
            f"(?P<{part.lower()}>.+)" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
        if found := re.fullmatch(pattern, text):
            yield found.groupdict()


def about(words: str) -> str:
    name = words[0].lower() + words[1:]
    return "shown" if name in world.SHOWN else name


def meanings(text: str) -> set[tuple[str, ...]]:
    """Every key that the world's templates allow for a text."""
    found: set[tuple[str, ...]] = {("photo", places["v"]) for places in matched(text, world.PHOTOS)}
    for name, fact in world.FACTS.items():
        for places in matched(text, fact.questions):
            found.add(("question", name, about(places["x"])))
        for places in matched(text, fact.statements):
            if places["v"] in fact.values:
                found.add(("fact", name, about(places["x"]), places["v"]))
    return found


@pytest.fixture(scope="module")
def paraphrases() -> list[Pair]:
    random = Random(0)
    return [paraphrased(random) for _ in range(400)]


def test_both_sides_of_a_paraphrase_mean_its_key(paraphrases: list[Pair]) -> None:
    for pair in paraphrases:
        assert isinstance(pair.left, str)
        assert pair.key in meanings(pair.left)
        assert pair.key in meanings(pair.right)


def test_a_text_has_one_key_only(paraphrases: list[Pair]) -> None:
    keys: dict[str, tuple[str, ...]] = {}
    for pair in paraphrases:
        assert keys.setdefault(pair.right, pair.key) == pair.key


def test_facts_questions_and_photos_are_paraphrased(paraphrases: list[Pair]) -> None:
    assert {pair.key[0] for pair in paraphrases} == {"fact", "question", "photo"}
    assert any(pair.left != pair.right for pair in paraphrases)


def test_a_caption_names_the_thing_of_its_key() -> None:
    random = Random(0)
    pairs = [captioned(random) for _ in range(60)]
    for pair in pairs:
        assert isinstance(pair.left, Image)
        (thing,) = (thing for thing in world.THINGS if thing.name == pair.key[0])
        assert thing.colour in pair.right.lower()
        assert thing.shape in pair.right.lower()
    plain = [pair for pair in pairs if any(matched(pair.right, CAPTIONS))]
    assert 0 < len(plain) < len(pairs)


def test_sentences_hold_statements_and_questions_about_photos() -> None:
    texts = sentences(Random(0), 100)
    assert len(texts) == 125
    assert any("the thing in the " in text for text in texts)
    assert any(meanings(text) for text in texts)
