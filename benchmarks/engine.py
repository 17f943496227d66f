"""The vllm engine beside vLLM's own `LLM.chat`, and beside the transformers engine.

    python -m benchmarks.engine [--repetitions 8] [--cores 1]

All answer the same questions of the demo world in one process tree, in float32, with as many
threads and, where they have them, the limits that `predict` chooses. Repetitions are interleaved,
and the first is left out; each asks other questions, whose images nothing has in a cache. Answers
that differ end the comparison. Prints one table in Markdown: medians, and ratios above 1 where ours
is faster.
"""

import operator
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from statistics import linear_regression, median
from typing import Annotated, Any, TypeVar

import typer

from benchmarks.ratios import REPETITIONS, Ratio, interleave, per, shown
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
FEW_COUNTS, SOME = (64, 256), 128
"""Rows of the table of docs/performance.md: of the slope, and with answers of different lengths."""
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


P = TypeVar("P", bound=VllmProcess)


class Process(VllmProcess):
    """Ours, made to write answers of given lengths."""

    lengths: dict[int, int] | None = None

    async def _generate(self, request: Request, sampling: Any) -> Any:
        if self.lengths is not None:
            length = self.lengths[request.key[0]]
            sampling = self._sampling(max_tokens=length, min_tokens=length, logprobs=0)
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


def start(kind: type[P]) -> P:
    """An engine of ours, of the packaged generator."""
    return kind(
        GENERATOR,
        LIMITS,
        dtype="float32",
        max_new_tokens=USUAL,
        family=open_family(GENERATOR),
        max_images=1,
    )


Side = Callable[[list[Question]], list[str]]


class Engines:
    """Both, beside each other in one process tree, and the questions that they take turns at."""

    def __init__(self, cores: int) -> None:
        prepare_environment(cores)
        os.environ["OMP_NUM_THREADS"] = str(cores)
        import torch
        from vllm import LLM

        torch.set_num_threads(cores)
        self.process = start(Process)
        self.engine = Supervisor(lambda: self.process, window=2 * LIMITS.rows)
        del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]  # set for ours; vLLM has its own default
        self.llm = LLM(
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
        with tempfile.TemporaryDirectory() as folder:
            self.questions = questions_of(Path(folder), POOL)
        self._asked = 0

    def compare(self, count: int, theirs: Side, repetitions: int) -> dict[str, list[float]]:
        """Seconds for so many questions, others in each repetition, of ours and of theirs."""
        start, self._asked = self._asked, self._asked + count * repetitions

        def asked_in(repetition: int) -> list[Question]:
            first = start + count * repetition
            return list(islice(cycle(self.questions), first % POOL, first % POOL + count))

        def forgetful(side: Side) -> Callable[[int], list[str]]:
            def run(repetition: int) -> list[str]:
                self.process.forget()
                self.llm.reset_mm_cache()
                return side(asked_in(repetition))

            return run

        sides = {"ours": forgetful(partial(ask, self.engine)), "theirs": forgetful(theirs)}
        return interleave(sides, repetitions, agree=operator.eq)

    def chunks(self, count: int, repetitions: int) -> dict[str, list[float]]:
        """Ours beside `LLM.chat` in chunks, where answers are of different lengths."""
        self.process.lengths = {one.request.key[0]: one.length for one in self.questions}
        seconds = self.compare(count, partial(chat_in_chunks, self.llm), repetitions)
        self.process.lengths = None
        return seconds


def slope(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a row more, and those that are fixed."""
    return linear_regression(counts, seconds)


def ratios(keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """A row more beside one of `LLM.chat`, and a window beside chunks."""
    engines = Engines(1)
    if "4" in keys:
        theirs = partial(chat, engines.llm)
        times = [engines.compare(count, theirs, repetitions) for count in FEW_COUNTS]
        sides = [
            [slope(FEW_COUNTS, seconds)[0] for seconds in zip(*(one[side] for one in times))]
            for side in ("ours", "theirs")
        ]
        yield Ratio("4", per(*sides))
    if "6" in keys:
        seconds = engines.chunks(SOME, repetitions)
        yield Ratio("6", per(seconds["theirs"], seconds["ours"]))
    engines.engine.close()


def main(
    repetitions: Annotated[int, typer.Option(min=4, help="The first is left out.")] = REPETITIONS,
    cores: Annotated[int, typer.Option(help="Threads of each engine.")] = 1,
    most: Annotated[int, typer.Option(help="Rows of the longest table.")] = COUNTS[-1],
) -> None:
    """Compare the engines."""
    from mmrag_batch.generation.engines.transformers import TransformersEngine

    engines = Engines(cores)
    alone = TransformersEngine(
        GENERATOR, device="cpu", batch_size=1, max_new_tokens=USUAL, dtype="float32"
    )

    def tell(name: str, count: int, seconds: Mapping[str, list[float]]) -> tuple[float, float]:
        """Print a line; medians of both."""
        us, them = seconds.values()
        ratio = median(per(them, us))
        typer.echo(f"| {name} | {count:,} | {shown(us)} | {shown(them)} | {ratio:.3f} |")
        return median(us), median(them)

    typer.echo("| compared with | rows | ours, s | theirs, s | ratio |\n|---|---|---|---|---|")
    counts = [count for count in COUNTS if count <= most]
    theirs = partial(chat, engines.llm)
    medians = [
        tell("`LLM.chat`", count, engines.compare(count, theirs, repetitions)) for count in counts
    ]
    name = f"`LLM.chat`, {CHUNK} rows a call, 1 to {LONGEST} tokens"
    tell(name, VARIED, engines.chunks(VARIED, repetitions))

    theirs = partial(ask, alone)
    usual = engines.compare(FEW, theirs, repetitions)
    tell("transformers, a row at a time", FEW, usual)

    engines.process.lengths = {one.request.key[0]: LONG for one in engines.questions}
    alone._generation.min_new_tokens = alone._generation.max_new_tokens = LONG
    tell(f"the same, {LONG} tokens each", FEW, engines.compare(FEW, theirs, repetitions))

    if len(medians) > 1:
        (us, us_fixed), (them, them_fixed) = (slope(counts, side) for side in zip(*medians))
        typer.echo(
            f"\nA row more: ours {1000 * us:.2f} ms, `LLM.chat` {1000 * them:.2f} ms (ours takes "
            f"{us / them:.3f} of it). Fixed: {us_fixed:.2f} s, {them_fixed:.2f} s. "
            f"Load average: {os.getloadavg()[2]:.1f}."
        )
    engines.engine.close()


if __name__ == "__main__":
    typer.run(main)
