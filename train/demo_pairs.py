"""Pairs that mean the same, out of the demo world: what its small encoders learn from.

ImageBind learns from pictures and their captions. Captions of the demo world tell what pictures
show; that prices and owners exist is learnt from pairs of sentences that say the same.
"""

from dataclasses import dataclass
from random import Random

from PIL.Image import Image

from mmrag_batch.train import demo_world as world
from mmrag_batch.train.demo_pictures import draw

CAPTIONS = (
    "a {colour} {shape}",
    "the {colour} {shape}",
    "a picture of a {colour} {shape}",
    "this {shape} is {colour}",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two views of one meaning; pairs with the same `key` mean the same."""

    left: Image | str
    right: str
    key: tuple[str, ...]


def captioned(rng: Random) -> Pair:
    """A picture with its caption, or with a sentence that names what is shown."""
    thing = rng.choice(world.THINGS)
    if rng.random() < 0.7:
        text = rng.choice(CAPTIONS).format(colour=thing.colour, shape=thing.shape)
    else:
        fact = rng.choice(tuple(world.FACTS))
        text = world.statement(rng, fact, thing.name, rng.choice(world.FACTS[fact].values))
    return Pair(draw(rng, thing.colour, thing.shape), text, (thing.name,))


def paraphrased(rng: Random) -> Pair:
    """Two statements of one fact, two wordings of one question, or two notes on one photo."""
    kind = rng.choice(("fact", "fact", "fact", "question", "photo"))
    if kind == "photo":
        city = rng.choice(world.CITIES)
        left, right = (rng.choice(world.PHOTOS).format(v=city) for _ in range(2))
        return Pair(left, right, (kind, city))
    fact = rng.choice(tuple(world.FACTS))
    names = (rng.choice(world.THINGS).name,) * 2
    if rng.random() < 0.3:
        names = (rng.choice(world.SHOWN), rng.choice(world.SHOWN))
    subject = names[0] if names[0] not in world.SHOWN else "shown"
    if kind == "question":
        left, right = (rng.choice(world.FACTS[fact].questions).format(x=name) for name in names)
        return Pair(left, right, (kind, fact, subject))
    value = rng.choice(world.FACTS[fact].values)
    left, right = (world.statement(rng, fact, name, value) for name in names)
    return Pair(left, right, (kind, fact, subject, value))


def sentences(rng: Random, count: int) -> list[str]:
    """Texts of the demo world, to train a tokenizer on."""
    pairs = [(captioned if rng.random() < 0.2 else paraphrased)(rng) for _ in range(count)]
    looks = [words for kind in world.LOOKS.values() for words in kind]
    questions = [
        rng.choice(looks).format(
            x="the thing in " + rng.choice(world.PHOTO_WORDS).format(v=rng.choice(world.CITIES))
        )
        for _ in range(count // 4)
    ]
    return [pair.right for pair in pairs] + questions
