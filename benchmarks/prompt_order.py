"""What the order of a prompt costs where an engine caches prefixes, and rows share evidence.

    PYTHONPATH=tests/families/doubles python -m benchmarks.prompt_order [--rows 64] [--shared 8]

Each `--shared` rows in turn have the same three documents, a picture and 200 letters each, and a
question of their own, with a picture of its own or without. The same rows are asked in three
orders: the question before its evidence, images first, and evidence first. The model is a Qwen3-VL
of 23 million random weights on vLLM; the path names a double of torchvision, which vLLM imports and
does not use. Prints a table in Markdown: milliseconds a row, with texts and pictures that no time
before had.
"""

import string
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Annotated, Any

import typer
from PIL import Image

from benchmarks.ratios import REPETITIONS, Ratio, interleave, per
from mmrag_batch.bundle import hash_files, open_bundle, read_manifest, write_manifest
from mmrag_batch.generation.asking import AnswerRequest, ask
from mmrag_batch.generation.engine import open_engine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import EVIDENCE_FIRST, IMAGES_FIRST, Prompt, PromptSpec, build_prompt
from mmrag_batch.records import Document, Evidence, Question
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from tests.families.tiny import build

SIZES: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [8, 12, 12],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 4,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_heads": 3,
        "out_hidden_size": 384,
    },
}
DOCUMENTS = 3
LETTERS = 200
SIDE = 128
"""Pixels of a picture's side: 256 tokens."""
SOME = 8
"""Rows of the table of docs/performance.md, all with the same evidence."""
SPEC = PromptSpec(DOCUMENTS + 1, 3072, "letter")
Order = Callable[[Question, tuple[Evidence, ...]], Prompt]


def question_first(question: Question, evidence: tuple[Evidence, ...]) -> Prompt:
    """The row's own picture and its question, then the evidence."""
    prompt = build_prompt(question, evidence, replace(SPEC, template_version=EVIDENCE_FIRST))
    (message,) = prompt.messages
    content = message["content"]
    own, shared = content[DOCUMENTS + 1 :], content[: DOCUMENTS + 1]
    if not own:  # one text holds both
        notes, _, asked = shared[-1]["text"].partition("\n\n")
        own = [{"type": "text", "text": asked + "\n\n"}]
        shared = [*shared[:-1], {"type": "text", "text": notes}]
    images = prompt.images[DOCUMENTS:] + prompt.images[:DOCUMENTS]
    return Prompt(({**message, "content": [*own, *shared]},), images)


def in_order(template_version: int) -> Order:
    """The prompts of a template."""
    spec = replace(SPEC, template_version=template_version)
    return lambda question, evidence: build_prompt(question, evidence, spec)


ORDERS: dict[str, Order] = {
    "question first": question_first,
    "images first": in_order(IMAGES_FIRST),
    "evidence first": in_order(EVIDENCE_FIRST),
}


def requests(
    renderer: Renderer, order: Order, random: Random, *, rows: int, shared: int, with_own: bool
) -> Iterator[AnswerRequest]:
    """Rows that nobody has asked before; every so many of them share their evidence."""
    pictures: dict[str, Image.Image] = {}
    evidence: tuple[Evidence, ...] = ()

    def words() -> str:
        return "".join(random.choices(string.ascii_lowercase + " ", k=LETTERS))

    def picture(name: str) -> str:
        pictures[name] = Image.frombytes("RGB", (SIDE, SIDE), random.randbytes(3 * SIDE**2))
        return name

    for row in range(rows):
        if row % shared == 0:
            evidence = tuple(
                Evidence(Document(str(n), words(), picture(f"{row} {n}")), 1.0)
                for n in range(DOCUMENTS)
            )
        own = picture(str(row)) if with_own else None
        prompt = order(Question(words()[:60], own, ("this", "that"), ()), evidence)
        yield AnswerRequest(
            row,
            tuple(renderer.render(prompt.messages)),
            tuple(pictures[name] for name in prompt.images),
            (renderer.answer_ids("A"), renderer.answer_ids("B")),
        )


def measure(
    rows: int, shared: int, repetitions: int, orders: Mapping[str, Order] = ORDERS
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Seconds a row in each order, of rows without and then with a picture of their own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build("qwen3_vl", root / "generator", sizes=SIZES)
        manifest = replace(read_manifest(DEMO_BUNDLE), retriever=None, files=hash_files(root))
        write_manifest(root, manifest)
        settings = PredictSettings(root, root, engine="vllm", engine_rows=8, kv_cache_gib=2)
        renderer, random = Renderer(root / "generator"), Random(0)
        with open_engine("vllm", settings, open_bundle(root), SPEC) as engine:

            def side(order: Order, with_own: bool) -> Callable[[int], int]:
                asked = iter(
                    [
                        list(
                            requests(
                                *(renderer, order, random),
                                rows=rows,
                                shared=shared,
                                with_own=with_own,
                            )
                        )
                        for _ in range(repetitions)
                    ]
                )

                def run(_: int) -> int:
                    results = list(ask(engine, next(asked)))
                    assert not any(result.error for result in results)
                    return len(results)

                return run

            for with_own in (False, True):
                sides = {name: side(order, with_own) for name, order in orders.items()}
                seconds = interleave(sides, repetitions)
                yield (
                    "with a picture" if with_own else "without a picture",
                    {name: [one / rows for one in taken] for name, taken in seconds.items()},
                )


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Evidence first against the question first."""
    orders = {name: ORDERS[name] for name in ("question first", "evidence first")}
    for letter, (_, seconds) in zip("ab", measure(SOME, SOME, repetitions, orders)):
        yield Ratio(f"18{letter}", per(seconds["question first"], seconds["evidence first"]))


def main(
    rows: Annotated[int, typer.Option(help="Of each measurement.")] = 64,
    shared: Annotated[int, typer.Option(help="Rows with the same evidence.")] = 8,
    repetitions: Annotated[int, typer.Option(min=2, help="The first is left out.")] = REPETITIONS,
) -> None:
    """Ask the same rows in each order."""
    typer.echo("| rows | order | ms a row | against question first |\n|---|---|---|---|")
    for kind, seconds in measure(rows, shared, repetitions):
        for name, taken in seconds.items():
            ratio = median(per(seconds["question first"], taken))
            typer.echo(f"| {kind} | {name} | {1000 * median(taken):.0f} | {ratio:.2f}x |")


if __name__ == "__main__":
    typer.run(main)
