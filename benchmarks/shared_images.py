"""What it saves to encode an image once that many rows share.

    python -m benchmarks.shared_images

A random generator whose vision tower takes its full-size share of a row's work (a quarter-size
tower, half a thousand encoder tokens), vLLM on the CPU, 48 rows of one image and one answer token.
Each share of repeated images is timed several times, in turn; images differ from round to round.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import typer
from PIL import Image

from benchmarks.ratios import REPETITIONS, interleave, per, shown

ROWS = 48
SHARES = (0.0, 0.5, 0.9)


def main() -> None:
    """Print one table."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        engine = LLM(
            model=str(generator(Path(folder))),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            limit_mm_per_prompt={"image": 1},
        )
        asked = {
            (turn, share): prompts(engine, share, seed=turn)
            for turn in range(REPETITIONS)
            for share in SHARES
        }
        sides: dict[str, Callable[[int], int]] = {
            f"{share:.0%}": lambda turn, share=share: answer(engine, asked[turn, share])  # type: ignore[misc]
            for share in SHARES
        }
        times = interleave(sides)
        engine.llm_engine.engine_core.shutdown()
    typer.echo("| repeated images | seconds | against none |\n|---|---|---|")
    for name, taken in times.items():
        typer.echo(f"| {name} | {shown(taken)} | {median(per(times['0%'], taken)):.2f}x |")


def generator(folder: Path) -> Path:
    """A random checkpoint."""
    from mmrag_batch.train.mllama import GeneratorSizes, build_generator

    sizes = GeneratorSizes(
        hidden_size=512,
        heads=8,
        kv_heads=4,
        layers=10,
        intermediate_size=1792,
        vision_hidden_size=320,
        vision_layers=8,
        vision_global_layers=2,
        vision_heads=4,
        image_size=224,
        patch_size=14,
    )
    build_generator(folder / "generator", ["What does the red cube cost?"], sizes=sizes)
    return folder / "generator"


def prompts(engine: Any, share: float, seed: int) -> list[dict[str, Any]]:
    """Those of all rows, where this share of their images was seen before."""
    dice = np.random.default_rng([seed, int(100 * share)])
    images = [
        Image.fromarray(dice.integers(0, 256, (200, 200, 3), dtype=np.uint8))
        for _ in range(round(ROWS * (1 - share)))
    ]
    tokenizer = engine.get_tokenizer()
    text = "<|begin_of_text|><|image|>" + "What does the red cube cost? " * 8
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return [
        {
            "prompt_token_ids": token_ids,
            "multi_modal_data": {"image": images[row % len(images)]},
        }
        for row in range(ROWS)
    ]


def answer(engine: Any, asked: list[dict[str, Any]]) -> int:
    """Answer them with a token each; how many there are."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1)
    return len(engine.generate(asked, sampling, use_tqdm=False))


if __name__ == "__main__":
    main()
