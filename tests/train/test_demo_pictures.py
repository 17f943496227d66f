from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmrag_batch.train.demo_pictures import COLOURS, SHAPES, draw

Floats = NDArray[np.float64]


def pixels(image: Image.Image) -> Floats:
    """(H, W, 3)."""
    return np.asarray(image, dtype=np.float64)


def edge(values: Floats) -> Floats:
    """(N, 3): the outermost pixels."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def test_sides_are_56_to_112_pixels() -> None:
    random = Random(0)
    images = [draw(random, "red", "star") for _ in range(60)]
    sides = [side for image in images for side in image.size]
    assert all(image.mode == "RGB" for image in images)
    assert min(sides) in range(56, 61)
    assert max(sides) in range(108, 113)


def test_the_same_random_state_draws_the_same_picture() -> None:
    first, second = (pixels(draw(Random(3), "green", "moon")) for _ in range(2))
    assert np.array_equal(first, second)
    other = pixels(draw(Random(4), "green", "moon"))
    assert other.shape != first.shape or not np.array_equal(first, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_things_are_inside_the_picture(shape: str) -> None:
    """Blue is far from any grey, so its distance tells the thing from the background."""
    random = Random(1)
    for _ in range(20):
        values = pixels(draw(random, "blue", shape))
        distance = np.linalg.norm(values - COLOURS["blue"], axis=-1)
        assert (distance < 50).mean() > 0.02
        touching = np.linalg.norm(edge(values) - COLOURS["blue"], axis=-1) < 50
        assert touching.mean() < 0.02  # a corner of a cross may reach the edge


@pytest.mark.parametrize("colour", COLOURS)
def test_what_stands_out_has_the_named_colour(colour: str) -> None:
    random = Random(2)
    for shape in SHAPES:
        values = pixels(draw(random, colour, shape))
        contrast = np.linalg.norm(values - np.median(edge(values), axis=0), axis=-1)
        thing = values[contrast >= np.quantile(contrast, 0.97)]
        seen = np.median(thing, axis=0)
        nearest = min(COLOURS, key=lambda name: float(np.linalg.norm(seen - COLOURS[name])))
        assert nearest == colour


def test_shapes_differ_in_how_much_they_cover() -> None:
    """At one size and place: a circle covers most of what is around it, a star the least."""
    covered = {}
    for shape in SHAPES:
        distance = np.linalg.norm(pixels(draw(Random(7), "blue", shape)) - COLOURS["blue"], axis=-1)
        covered[shape] = (distance < 50).mean()
    assert max(covered, key=lambda shape: covered[shape]) == "circle"
    assert len({round(share, 3) for share in covered.values()}) == len(SHAPES)
