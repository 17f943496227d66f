"""The vllm engine beside vLLM's own `LLM.chat`, and beside the transformers engine.

    python benchmarks/engine.py [--repetitions 8] [--cores 1]

All answer the same questions of the demo world in one process tree, in float32 and with as many
threads. Their answers are compared before anything is timed; repetitions are interleaved, and the
first is left out. Prints one table in Markdown: medians, and ratios above 1 where ours is faster.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import linear_regression, median, quantiles
from time import perf_counter
from typing import Annotated, Any

import typer

from mmrag_batch.config import DEMO_BUNDLE
from mmrag_batch.generation.engine import Engine, GenerationRequest
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.generation.vllm_limits import GIB, Limits
from mmrag_batch.generation.vllm_process import VllmProcess, prepare_environment
from mmrag_batch.io.images import ImageLoader
from mmrag_batch.io.table import read_rows
from mmrag_batch.prompt import build_prompt
from mmrag_batch.records import Evidence
from train.demo_world import write_world

GENERATOR = DEMO_BUNDLE / "generator"
COUNTS = (64, 256, 1024)
VARIED = 1024
"""Rows with answers of 1 to `LONGEST` tokens."""
LONGEST = 128
USUAL = 12
"""Most tokens of the other answers; they end by themselves after three or so."""
LONG = 32
CHUNK = 32
LIMITS = Limits(rows=32, row_tokens=1280, step_tokens=2048, kv_cache_bytes=GIB)


@dataclass(frozen=True)
class Question:
    """One prompt as our engine takes it and as `LLM.chat` does; tokens of a long answer."""

    request: GenerationRequest
    messages: list[dict[str, Any]]
    length: int


class Process(VllmProcess):
    """Ours, made to write answers of given lengths."""

    lengths: dict[int, int] | None = None

    async def _generate(self, request: GenerationRequest, prefix: Any, sampling: Any) -> Any:
        if self.lengths is not None:
            length = self.lengths[request.key]
            sampling = self._sampling(max_tokens=length, min_tokens=length)
        return await super()._generate(request, prefix, sampling)


def questions_of(folder: Path, count: int) -> list[Question]:
    """The questions of a world, each with its first documents and at most one image."""
    table = write_world(folder, rows=count, seed=9301)
    images, renderer, random = ImageLoader(table.parent), Renderer(GENERATOR), Random(0)
    questions = []
    for row in read_rows(table):
        assert row.question is not None
        usable = [d for d in row.question.documents if not d.image or "lost" not in d.image]
        evidence = [Evidence(document, 1.0) for document in usable[:3]]
        prompt = build_prompt(row.question, evidence, max_images=1, scoring="text")
        loaded = [images.load(source) for source in prompt.images]
        token_ids = tuple(renderer.render(prompt.messages))
        request = GenerationRequest(row.number, token_ids, tuple(loaded), ())
        messages = as_chat(prompt.messages, loaded)
        questions.append(Question(request, messages, random.randint(1, LONGEST)))
    return questions


def as_chat(messages: Iterable[dict[str, Any]], images: Iterable[Any]) -> list[dict[str, Any]]:
    """The same messages with the images in their places."""
    left = iter(images)

    def part_of(part: dict[str, str]) -> dict[str, Any]:
        return {"type": "image_pil", "image_pil": next(left)} if part["type"] == "image" else part

    return [{**message, "content": list(map(part_of, message["content"]))} for message in messages]


def ask(engine: Engine, questions: list[Question]) -> list[str]:
    """Our answers, in the order of the questions."""
    results = engine.generate(question.request for question in questions)
    texts = {result.key: result.text if not result.error else "" for result in results}
    return [texts[question.request.key] for question in questions]


def chat(llm: Any, questions: list[Question], *, varied: bool) -> list[str]:
    """The answers of `LLM.chat`."""
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            temperature=0.0,
            max_tokens=one.length if varied else USUAL,
            min_tokens=one.length if varied else 0,
        )
        for one in questions
    ]
    outputs = llm.chat([one.messages for one in questions], parameters, use_tqdm=False)
    return [output.outputs[0].text.strip() for output in outputs]


def chat_in_chunks(llm: Any, questions: list[Question]) -> list[str]:
    """The same, called for so many rows at a time."""
    chunks = (questions[start : start + CHUNK] for start in range(0, len(questions), CHUNK))
    return [text for chunk in chunks for text in chat(llm, chunk, varied=True)]


def measure(
    repetitions: int, ours: Callable[[], list[str]], theirs: Callable[[], list[str]]
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn; the first of each is left out. Exits if they answer differently."""
    sides, seconds = (ours, theirs), ([], [])  # type: tuple[list[float], list[float]]
    for repetition in range(repetitions):
        answers = []
        for side in (0, 1) if repetition % 2 else (1, 0):
            started = perf_counter()
            answers.append(sides[side]())
            seconds[side].append(perf_counter() - started)
        different = sum(a != b for a, b in zip(*answers, strict=True))
        if different:
            sys.exit(f"{different} of {len(answers[0])} answers differ: no time is worth quoting.")
    return seconds[0][1:], seconds[1][1:]


def line(name: str, rows: int, ours: list[float], theirs: list[float]) -> None:
    """One row of the table."""

    def shown(values: list[float]) -> str:
        first, _, third = quantiles(values, n=4)
        return f"{median(values):.2f} ({first:.2f} to {third:.2f})"

    ratio = median(theirs) / median(ours)
    typer.echo(f"| {name} | {rows:,} | {shown(ours)} | {shown(theirs)} | {ratio:.3f} |")


def main(
    repetitions: Annotated[int, typer.Option(min=4, help="The first is left out.")] = 8,
    cores: Annotated[int, typer.Option(help="Threads of each engine.")] = 1,
    most: Annotated[int, typer.Option(help="Rows of the longest table.")] = COUNTS[-1],
) -> None:
    """Compare the engines."""
    prepare_environment(cores)
    os.environ["OMP_NUM_THREADS"] = str(cores)
    import torch
    from vllm import LLM

    from mmrag_batch.generation.transformers_engine import TransformersEngine

    torch.set_num_threads(cores)
    settings: dict[str, Any] = {"dtype": "float32", "max_images": 1, "max_new_tokens": USUAL}
    process = Process(GENERATOR, LIMITS, **settings)
    engine = Supervisor(lambda: process, window=2 * LIMITS.rows)
    del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]  # set for ours; vLLM has its own default
    llm = LLM(
        str(GENERATOR),
        dtype="float32",
        max_model_len=LIMITS.row_tokens,
        max_num_seqs=LIMITS.rows,
        max_num_batched_tokens=LIMITS.step_tokens,
        kv_cache_memory_bytes=LIMITS.kv_cache_bytes,
        limit_mm_per_prompt={"image": 1},
        enforce_eager=True,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    alone = TransformersEngine(
        GENERATOR, device="cpu", batch_size=1, max_new_tokens=USUAL, dtype="float32"
    )
    with tempfile.TemporaryDirectory() as folder:
        questions = questions_of(Path(folder), max(most, VARIED))

    typer.echo("| compared with | rows | ours, s | theirs, s | ratio |\n|---|---|---|---|---|")
    medians = []
    for count in (count for count in COUNTS if count <= most):
        part = questions[:count]
        ours, theirs = measure(
            repetitions, lambda p=part: ask(engine, p), lambda p=part: chat(llm, p, varied=False)
        )
        line("`LLM.chat`", count, ours, theirs)
        medians.append((count, median(ours), median(theirs)))

    part = questions[:VARIED]
    process.lengths = {one.request.key: one.length for one in part}
    ours, theirs = measure(
        max(4, repetitions), lambda: ask(engine, part), lambda: chat_in_chunks(llm, part)
    )
    line(f"`LLM.chat`, {CHUNK} rows a call, 1 to {LONGEST} tokens", VARIED, ours, theirs)
    process.lengths = None

    few = questions[: COUNTS[0]]
    ours, theirs = measure(repetitions, lambda: ask(engine, few), lambda: ask(alone, few))
    line("transformers, a row at a time", COUNTS[0], ours, theirs)

    process.lengths = {one.request.key: LONG for one in few}
    alone._generation.update(min_new_tokens=LONG, max_new_tokens=LONG)
    ours, theirs = measure(repetitions, lambda: ask(engine, few), lambda: ask(alone, few))
    line(f"the same, {LONG} tokens each", COUNTS[0], ours, theirs)

    if len(medians) > 1:
        rows, *sides = zip(*medians)
        (us, us_fixed), (them, them_fixed) = (linear_regression(rows, side) for side in sides)
        typer.echo(
            f"\nA row more: ours {1000 * us:.2f} ms, `LLM.chat` {1000 * them:.2f} ms (ours takes "
            f"{us / them:.3f} of it). Fixed: {us_fixed:.2f} s, {them_fixed:.2f} s. "
            f"Outside load: {os.getloadavg()[2]:.1f}."
        )
    engine.close()


if __name__ == "__main__":
    typer.run(main)
