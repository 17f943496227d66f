"""How many images are prepared at once for the vLLM engine, beside one after the other.

    python -m benchmarks.preparation

Photos of four tiles, for a generator of few weights that reads images of the published size; vLLM's
own preparation, as the engine asks for it. Prints one line.
"""

import asyncio
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image

from benchmarks.engine import LIMITS
from benchmarks.ratios import REPETITIONS, Ratio, interleave, per, shown
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.engines.vllm_process import VllmProcess, prepare_environment
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.machine import cores, retrieval_cores
from mmrag_batch.train.mllama import GeneratorSizes, build_generator

IMAGES = 12
SIDE = 1120
SIZES = GeneratorSizes(image_size=560, patch_size=56)
"""The published size of a tile, in few patches."""


def photos(seed: int) -> list[Image.Image]:
    """That nobody has prepared before."""
    random = np.random.default_rng(seed)
    return [
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        for _ in range(IMAGES)
    ]


def measure(repetitions: int) -> dict[str, list[float]]:
    """Seconds for the images of a repetition, one at a time and as the engine asks for them."""
    prepare_environment(max(1, cores() - retrieval_cores()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_generator(folder, ["What does the red cube cost?"], sizes=SIZES)
        process = VllmProcess(
            folder,
            LIMITS,
            dtype="float32",
            max_new_tokens=1,
            family=open_family(folder),
            max_images=1,
        )
        content = [{"type": "image"}, {"type": "text", "text": "What does the red cube cost?"}]
        token_ids = Renderer(folder).render([{"role": "user", "content": content}])
        render = process._llm.renderer.render_cmpl_async

        async def prepare(image: Image.Image) -> int:
            prompt = {"prompt_token_ids": list(token_ids), "multi_modal_data": {"image": [image]}}
            return len(await render([prompt]))

        async def in_turn(images: list[Image.Image]) -> int:
            return sum([await prepare(image) for image in images])

        async def at_once(images: list[Image.Image]) -> int:
            return sum(await asyncio.gather(*map(prepare, images)))

        def side(way: Any, offset: int) -> Any:
            taken = iter([photos(2 * number + offset) for number in range(repetitions)])
            return lambda _: process._submit(way(next(taken))).result()

        sides = {"one": side(in_turn, 0), "ours": side(at_once, 1)}
        seconds = interleave(sides, repetitions, agree=lambda some, others: bool(some == others))
        process.close()
    return seconds


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """What is prepared at once."""
    seconds = measure(repetitions)
    yield Ratio("19", per(seconds["one"], seconds["ours"]))


def main() -> None:
    """Print the line."""
    seconds = measure(REPETITIONS)
    one, ours = ([1000 * value / IMAGES for value in seconds[side]] for side in ("one", "ours"))
    typer.echo(f"ms an image: {shown(one, 1)} in turn, {shown(ours, 1)} at once")


if __name__ == "__main__":
    typer.run(main)
