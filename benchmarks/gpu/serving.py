"""Rows a second, and memory, of an engine with a generator of the 11B's shape.

    python -m benchmarks.gpu.serving DIR [--engine vllm] [--prompt 1024] [--rows 96]

DIR is what `benchmarks.gpu.world` wrote. The engine is opened as `predict` opens it, with limits of
its own choice; prompts are of random tokens behind one image, each image new. Logits that are
scored go to `DIR/logits-ENGINE.json`, and are compared where another engine left its own.
"""

import json
import os
import subprocess
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Annotated

import numpy as np
import typer

from benchmarks.gpu.world import bundle, picture
from mmrag_batch.families.family import open_family
from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.generation.engine import Engine, Request, open_engine
from mmrag_batch.generation.engines.vllm_process import prepare_environment
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import PredictSettings

SCORED = (300, 301, 302, 303)
WRITTEN = 64
WARM_UP = 8
CASES = ((4, True), (1, True), (4, False), (1, False))
"""Tiles of the image, and whether choices are scored or an answer is written."""


def requests(
    count: int, *, length: int, tiles: int, score: bool, image_token: int, seed: int
) -> list[Request]:
    """Prompts of `length` tokens, the second of them an image."""
    random, noise = Random(seed), np.random.default_rng(seed)

    def request(number: int) -> Request:
        text = [random.randrange(256) for _ in range(length - 2)]
        ids = (text[0], image_token, *text)
        return Request((number, 0), ids, (picture(noise, tiles),), SCORED if score else ())

    return [request(number) for number in range(count)]


def memory_used() -> float:
    """GB of the GPU's memory that are taken, by whomever; 0 without a GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return 0.0
    return float(output.split()[0]) * 2**20 / 1e9


def main(
    directory: Path,
    engine: str = "vllm",
    prompt: int = 1024,
    rows: int = 96,
    batch: Annotated[int, typer.Option(help="Of the transformers engine.")] = 8,
    written: Annotated[bool, typer.Option(help="Measure written answers too.")] = True,
    plain: Annotated[bool, typer.Option(help="vLLM without compiling, without graphs.")] = False,
) -> None:
    """Measure each case."""
    if plain:
        arguments = Mllama.vllm_arguments
        switched_off = {"compilation_config": {"mode": 0, "cudagraph_mode": "NONE"}}
        Mllama.vllm_arguments = lambda *given: {**arguments(*given), **switched_off}  # type: ignore[method-assign]
    prepare_environment(8)
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
    opened = bundle(directory, 1, prompt)
    image_token = open_family(opened.generator_dir).image_token_id
    settings = PredictSettings(
        Path("in.csv"), Path("out.csv"), max_new_tokens=WRITTEN, batch_size=batch
    )
    spec = PromptSpec(1, prompt, "letter")
    before, started = memory_used(), perf_counter()
    with open_engine(engine, settings, opened, spec) as generator:
        typer.echo(
            f"SERVING {engine}: opened in {perf_counter() - started:.0f} s, window "
            f"{generator.window}; {before:.1f} GB taken before, {memory_used():.1f} after"
        )
        logits: dict[str, list[float]] = {}
        for case in CASES if written else CASES[:2]:
            logits |= measure(generator, engine, image_token, *case, length=prompt, rows=rows)
    (directory / f"logits-{engine}.json").write_text(json.dumps(logits))
    for other in directory.glob("logits-*.json"):
        if other.name != f"logits-{engine}.json":
            compare(engine, logits, other)


def measure(
    generator: Engine,
    engine: str,
    image_token: int,
    tiles: int,
    score: bool,
    *,
    length: int,
    rows: int,
) -> dict[str, list[float]]:
    """Print a line; the logits that were scored."""
    made = requests(
        rows + WARM_UP,
        length=length,
        tiles=tiles,
        score=score,
        image_token=image_token,
        seed=2 * tiles + score,
    )
    list(generator.generate(iter(made[:WARM_UP])))
    started = perf_counter()
    results = list(generator.generate(iter(made[WARM_UP:])))
    seconds = perf_counter() - started
    failed = [result.error.message for result in results if result.error]
    typer.echo(
        f"SERVING {engine}: {tiles} tile(s), {length} tokens, {1 if score else WRITTEN} written: "
        f"{rows / seconds:.2f} rows/s ({rows} in {seconds:.1f} s), {memory_used():.1f} GB"
        f"{f', {len(failed)} failed: {failed[0]}' if failed else ''}"
    )
    return {f"{tiles} {result.key[0]}": list(result.logits or ()) for result in results if score}


def compare(engine: str, logits: dict[str, list[float]], other: Path) -> None:
    """How far two engines' logits, and what would be chosen by them, are apart."""
    theirs = json.loads(other.read_text())
    both = [(np.array(logits[key]), np.array(theirs[key])) for key in logits.keys() & theirs.keys()]
    same = sum(int(a.argmax() == b.argmax()) for a, b in both)
    apart = max(float(np.abs(a - b).max()) for a, b in both)
    spread = float(np.mean([a.std() for a, _ in both]))
    typer.echo(
        f"SERVING {engine} and {other.stem}: {same}/{len(both)} choices equal, logits at most "
        f"{apart:.3f} apart, which spread by {spread:.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
