"""The vllm engine beside vLLM's own `LLM.chat`, and beside the transformers engine.

    python -m benchmarks.engine [--repetitions 8] [--cores 1]

All answer the same questions of the demo world in one process tree, in float32, with as many
threads and, where they have them, the limits that `predict` chooses. Repetitions are interleaved,
and the first is left out; each asks other questions, whose images nothing has in a cache. Answers
that differ end the comparison. Prints one table in Markdown: medians, and ratios above 1 where ours
is faster.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import linear_regression, median, quantiles
from time import perf_counter
from typing import Annotated, Any

import typer

from mmrag_batch.families.family import open_family
from mmrag_batch.generation.engine import Engine, Request
from mmrag_batch.generation.engines.vllm_limits import GIB, MAX_ROWS, Limits
from mmrag_batch.generation.engines.vllm_process import VllmProcess, prepare_environment
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Evidence
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.rows import read_rows
from mmrag_batch.train.demo_world import write_world

GENERATOR = DEMO_BUNDLE / "generator"
COUNTS = (64, 256, 1024)
POOL = 1024
"""Different questions: their images outnumber those that the engine remembers."""
VARIED = 1024
"""Rows with answers of 1 to `LONGEST` tokens."""
FEW = 128
"""Rows that transformers answers."""
LONGEST = 128
USUAL = 12
"""Most tokens of the other answers; they end by themselves after three or so."""
LONG = 32
CHUNK = 32
LIMITS = Limits(rows=MAX_ROWS["cpu"], row_tokens=1280, step_tokens=2048, kv_cache_bytes=GIB)


@dataclass(frozen=True)
class Question:
    """One prompt as our engine takes it and as `LLM.chat` does; tokens of a long answer."""

    request: Request
    messages: list[dict[str, Any]]
    length: int


class Process(VllmProcess):
    """Ours, made to write answers of given lengths."""

    lengths: dict[int, int] | None = None

    async def _generate(self, request: Request, sampling: Any) -> Any:
        if self.lengths is not None:
            length = self.lengths[request.key[0]]
            sampling = self._sampling(max_tokens=length, min_tokens=length)
        return await super()._generate(request, sampling)

    def forget(self) -> None:
        """Empty vLLM's cache of preprocessed images."""
        self._submit(self._llm.reset_mm_cache()).result()


def questions_of(folder: Path, count: int) -> list[Question]:
    """The questions of a world, each with its first documents and at most one image."""
    table = write_world(folder, rows=count, seed=9301)
    images, renderer, random = ImageLoader(table.parent), Renderer(GENERATOR), Random(0)
    questions = []
    for row in read_rows(table):
        assert row.question is not None
        usable = [d for d in row.question.documents if not d.image or "lost" not in d.image]
        evidence = [Evidence(document, 1.0) for document in usable[:3]]
        prompt = build_prompt(row.question, evidence, PromptSpec(1, 0, "text"))
        loaded = [images.load(source) for source in prompt.images]
        token_ids = tuple(renderer.render(prompt.messages))
        request = Request((row.number, 0), token_ids, tuple(loaded))
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


def chat(llm: Any, questions: list[Question], *, varied: bool = False) -> list[str]:
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


Side = Callable[[list[Question]], list[str]]


def measure(
    questions: list[Question], ours: Side, theirs: Side, *, swapped: bool
) -> tuple[float, float]:
    """Seconds of both, one after the other. Exits if they answer differently."""
    seconds, answers = [0.0, 0.0], [[""], [""]]
    for side in (1, 0) if swapped else (0, 1):
        started = perf_counter()
        answers[side] = (ours, theirs)[side](questions)
        seconds[side] = perf_counter() - started
    different = sum(a != b for a, b in zip(*answers, strict=True))
    if different:
        sys.exit(f"{different} of {len(questions)} answers differ: no time is worth quoting.")
    return seconds[0], seconds[1]


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

    from mmrag_batch.generation.engines.transformers import TransformersEngine

    torch.set_num_threads(cores)
    settings: dict[str, Any] = {"dtype": "float32", "max_new_tokens": USUAL}
    settings["arguments"] = open_family(GENERATOR).vllm_arguments(1)
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
        questions = questions_of(Path(folder), POOL)
    pool = cycle(questions)
    ours: Side = partial(ask, engine)

    def compare(name: str, count: int, theirs: Side) -> tuple[float, float]:
        """Print a line; medians of both."""
        seconds: tuple[list[float], list[float]] = ([], [])
        for repetition in range(repetitions):
            process.forget()
            llm.reset_mm_cache()
            taken = measure(list(islice(pool, count)), ours, theirs, swapped=bool(repetition % 2))
            for side, value in zip(seconds, taken, strict=True):
                side.append(value)
        us, them = (side[1:] for side in seconds)
        line(name, count, us, them)
        return median(us), median(them)

    typer.echo("| compared with | rows | ours, s | theirs, s | ratio |\n|---|---|---|---|---|")
    counts = [count for count in COUNTS if count <= most]
    medians = [compare("`LLM.chat`", count, partial(chat, llm)) for count in counts]

    process.lengths = {one.request.key[0]: one.length for one in questions}
    name = f"`LLM.chat`, {CHUNK} rows a call, 1 to {LONGEST} tokens"
    compare(name, VARIED, partial(chat_in_chunks, llm))

    process.lengths = None
    compare("transformers, a row at a time", FEW, partial(ask, alone))

    process.lengths = {one.request.key[0]: LONG for one in questions}
    alone._generation.min_new_tokens = alone._generation.max_new_tokens = LONG
    compare(f"the same, {LONG} tokens each", FEW, partial(ask, alone))

    if len(medians) > 1:
        (us, us_fixed), (them, them_fixed) = (
            linear_regression(counts, side) for side in zip(*medians, strict=True)
        )
        typer.echo(
            f"\nA row more: ours {1000 * us:.2f} ms, `LLM.chat` {1000 * them:.2f} ms (ours takes "
            f"{us / them:.3f} of it). Fixed: {us_fixed:.2f} s, {them_fixed:.2f} s. "
            f"Load average: {os.getloadavg()[2]:.1f}."
        )
    engine.close()


if __name__ == "__main__":
    typer.run(main)
