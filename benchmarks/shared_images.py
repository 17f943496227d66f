"""What it saves to encode an image once that many rows share.

    python -m benchmarks.shared_images

A random generator whose vision tower takes its full-size share of a row's work (a quarter-size
tower, half a thousand encoder tokens), vLLM on the CPU, 48 rows of one image and one answer token.
Each share of repeated images is timed several times, in turn; images differ from round to round.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image

ROWS = 48
ROUNDS = 5
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
        times: dict[float, list[float]] = {share: [] for share in SHARES}
        for turn in range(ROUNDS + 1):
            for share in SHARES:
                times[share].append(seconds(engine, share, seed=turn))
        engine.llm_engine.engine_core.shutdown()
    typer.echo("| repeated images | rows/s | spread | against none |\n|---|---|---|---|")
    base = statistics.median(times[0.0][1:])
    for share, found in times.items():
        kept = found[1:]  # the first is a warm-up
        middle = statistics.median(kept)
        spread = (max(kept) - min(kept)) / middle
        typer.echo(f"| {share:.0%} | {ROWS / middle:.1f} | {spread:.0%} | {base / middle:.2f}x |")


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


def seconds(engine: Any, share: float, seed: int) -> float:
    """The time that all rows take when this share of their images was seen before."""
    from vllm import SamplingParams

    dice = np.random.default_rng([seed, int(100 * share)])
    images = [
        Image.fromarray(dice.integers(0, 256, (200, 200, 3), dtype=np.uint8))
        for _ in range(round(ROWS * (1 - share)))
    ]
    tokenizer = engine.get_tokenizer()
    text = "<|begin_of_text|><|image|>" + "What does the red cube cost? " * 8
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    prompts = [
        {
            "prompt_token_ids": token_ids,
            "multi_modal_data": {"image": images[row % len(images)]},
        }
        for row in range(ROWS)
    ]
    start = time.perf_counter()
    engine.generate(prompts, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
