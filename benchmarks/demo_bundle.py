"""What the demo bundle is worth on worlds it has never seen, and what each part adds.

    python -m benchmarks.demo_bundle [--bundle DIR] [--base DIR] [--rows 300] [--seed 9001]

Draws a new world, answers it as it is, without choices, without documents, without question
pictures, and (with --base, the generator before LoRA) untuned; ranks its documents with trained and
untrained towers. Prints one table in Markdown.
"""

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from mmrag_batch.bundle import Bundle, open_bundle
from mmrag_batch.execute.local import run_stages
from mmrag_batch.generation.answerer import Answerer
from mmrag_batch.generation.engines.transformers import TransformersEngine
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import read_spec
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Row
from mmrag_batch.report.metrics import Metrics, evaluate
from mmrag_batch.retrieval.retriever import open_embedder, open_retriever
from mmrag_batch.run.answers import answer_of
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.output import RowFormat
from mmrag_batch.table.rows import read_header, read_rows
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.data import embed_table
from mmrag_batch.train.demo_world import KINDS, write_world
from mmrag_batch.train.ranking import rank
from mmrag_batch.train.supervision import by_relevant
from mmrag_batch.train.towers import Towers, TowersConfig

Cells = dict[str, str]


def answer(bundle: Bundle, generator: Path, table: Path) -> Metrics:
    """Predict a table with the retriever of a bundle and any generator; measure the output."""
    manifest, images = bundle.manifest, ImageLoader(table.parent)
    retriever = open_retriever(
        bundle.retriever_dir,
        read_spec(bundle.retriever_dir),
        images,
        top_k=manifest.generator.top_k,
        device="cpu",
    )
    engine = TransformersEngine(
        generator, device="cpu", batch_size=16, max_new_tokens=16, dtype="float32"
    )
    said = manifest.generator
    spec = PromptSpec(said.max_images, said.max_prompt_tokens, said.scoring)
    answerer = Answerer(Renderer(generator), engine, images, spec)
    out = table.with_suffix(".out.csv")
    row_format = RowFormat(out, read_header(table))
    lines: dict[int, bytes] = {}

    def keep(row: Row) -> None:
        lines[row.number] = row_format.row(row.cells, row.line, answer_of(row))

    run_stages(read_rows(table), [retriever, answerer], keep)
    out.write_bytes(row_format.header + b"".join(lines[number] for number in sorted(lines)))
    return evaluate(out, by=["kind"])


def changed(table: Path, name: str, change: Callable[[Cells], Cells]) -> Path:
    """The table with every row changed, as a new file beside it."""
    target = table.with_name(name)
    with table.open(newline="") as source, target.open("w", newline="") as stream:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(stream, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(change(row) for row in reader)
    return target


def without_choices(row: Cells) -> Cells:
    return {**row, "answer_choices": ""}


def without_documents(row: Cells) -> Cells:
    return {**row, "documents": "[]", "relevant": "[]"}


def without_picture(row: Cells) -> Cells:
    return {**row, "question_image": ""}


def ranked(bundle: Bundle, table: Path) -> float:
    """recall@1 of untrained towers: the plain mean of the frozen embeddings."""
    spec = read_spec(bundle.retriever_dir)
    images = ImageLoader(table.parent)
    embedder = open_embedder(bundle.retriever_dir, spec, images, device="cpu")
    torch.manual_seed(0)
    untrained = Towers(TowersConfig(spec.embedding_size, 8)).eval()
    return rank(
        untrained, embed_table(read_labelled_rows(table), embedder, by_relevant)
    ).recall_at_1


def line(name: str, metrics: Metrics) -> str:
    """One line of the table: accuracy, or exact match in free form, overall and by kind, and the
    calibration error."""
    cells = []
    for score in (metrics.overall, *(metrics.by["kind"][kind] for kind in KINDS)):
        value = score.accuracy.value if score.accuracy else None
        value = score.free_form.exact_match if score.free_form else value
        cells.append("-" if value is None else f"{value:.3f}")
    return f"| {name} | {' | '.join(cells)} | {metrics.overall.calibration_error:.3f} |"


def main(
    bundle: Annotated[Path, typer.Option(help="A demo bundle.")] = DEMO_BUNDLE,
    base: Annotated[Path | None, typer.Option(help="Its generator before LoRA.")] = None,
    rows: Annotated[int, typer.Option(help="Questions to ask.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the world, never trained on.")] = 9001,
) -> None:
    """Measure a demo bundle on a new world."""
    opened = open_bundle(bundle)
    with tempfile.TemporaryDirectory() as folder:
        table = write_world(Path(folder), rows=rows, seed=seed)
        tuned = answer(opened, opened.generator_dir, table)
        lines = [
            f"| accuracy, {rows} rows, seed {seed} | all | {' | '.join(KINDS)} | ECE |",
            "|---" * (3 + len(KINDS)) + "|",
            line("as it is", tuned),
        ]
        for name, change in [
            ("exact match without choices", without_choices),
            ("documents emptied", without_documents),
            ("question pictures removed", without_picture),
        ]:
            other = changed(table, f"{change.__name__}.csv", change)
            lines.append(line(name, answer(opened, opened.generator_dir, other)))
        if base is not None:
            lines.append(line("before LoRA", answer(opened, base, table)))
        assert tuned.overall.retrieval is not None  # the demo world knows what is relevant
        recall = tuned.overall.retrieval.recall[1]
        lines.append(f"\nrecall@1: {recall:.3f}, untrained towers {ranked(opened, table):.3f}")
        lines.append(f"parity: {json.dumps(opened.manifest.parity)}")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
