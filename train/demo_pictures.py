"""Pictures of the demo world: one coloured shape at a random size, place and rotation, on a random
grey background, with noise."""

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (215, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 50),
    "green": (50, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 75, 215),
    "purple": (135, 50, 170),
    "pink": (245, 150, 195),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "moon")
_SMOOTH = 3
"""Drawn this many times larger, then reduced: smooth edges."""


def draw(rng: Random, colour: str, shape: str) -> Image.Image:
    """A new RGB picture, 56 to 112 pixels a side, of a `colour` `shape`."""
    width, height = rng.randint(56, 112), rng.randint(56, 112)
    side = min(width, height)
    radius = side * rng.uniform(0.26, 0.42)
    margin = side / 2 - radius  # the thing stays inside the centre square
    centre = (
        width / 2 + rng.uniform(-margin, margin),
        height / 2 + rng.uniform(-margin, margin),
    )
    shade = rng.choice((rng.randint(15, 80), rng.randint(170, 240)))
    background = tuple(shade + rng.randint(-10, 10) for _ in range(3))
    paint = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in COLOURS[colour])

    canvas = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), background)
    outline = _outline(shape, rng.uniform(0, 2 * math.pi))
    points = [
        ((centre[0] + x * radius) * _SMOOTH, (centre[1] + y * radius) * _SMOOTH) for x, y in outline
    ]
    ImageDraw.Draw(canvas).polygon(points, fill=paint)
    pixels = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 9), pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _outline(shape: str, rotation: float) -> list[tuple[float, float]]:
    """The corners of a shape in the unit circle, rotated by `rotation` radians."""
    if shape == "moon":
        outer = _arc(1.0, 0.0, math.radians(50), math.radians(310), 40)
        inner = _arc(0.78, 0.42, math.radians(280), math.radians(80), 40)
        polar = outer + inner
    elif shape == "cross":
        arm = 0.32
        polar = [(1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm), (-1, arm)]
        polar += [(-x, -y) for x, y in polar]
    else:
        corners = {"circle": 60, "square": 4, "triangle": 3, "star": 10}[shape]
        polar = []
        for index in range(corners):
            radius = 0.42 if shape == "star" and index % 2 else 1.0
            angle = 2 * math.pi * index / corners
            polar.append((radius * math.cos(angle), radius * math.sin(angle)))
    cos, sin = math.cos(rotation), math.sin(rotation)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in polar]


def _arc(
    radius: float, shift: float, start: float, stop: float, steps: int
) -> list[tuple[float, float]]:
    """Points of a circle of `radius` around (shift, 0), from one angle to another."""
    angles = [start + (stop - start) * step / steps for step in range(steps + 1)]
    return [(shift + radius * math.cos(a), radius * math.sin(a)) for a in angles]
