"""What QLoRA is worth on a CPU: the demo generator learns German, its base in 4 bits.

    python -m benchmarks.qlora [--rows 4000] [--steps 200]

Of a demo world, the questions about what a picture shows are kept, and their choices are put into
German, which the packaged generator has never read. An adapter is trained on its base in 4 bits and
merged into the base as it was. Prints one table in Markdown.
"""

import csv
import json
import shutil
import tempfile
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from benchmarks.demo_bundle import answer
from mmrag_batch.bundle import Bundle, open_bundle, write_retriever_spec
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.export.merge import write_generator
from mmrag_batch.parts import read_spec
from mmrag_batch.report.interval import Accuracy
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train.demo_world import write_world
from mmrag_batch.train.generator import train_generator
from mmrag_batch.train.settings import GeneratorConfig

GERMAN = {
    "red": "rot",
    "orange": "orange",
    "yellow": "gelb",
    "green": "gruen",
    "cyan": "tuerkis",
    "blue": "blau",
    "purple": "lila",
    "pink": "rosa",
    "circle": "Kreis",
    "square": "Quadrat",
    "triangle": "Dreieck",
    "star": "Stern",
    "cross": "Kreuz",
    "moon": "Mond",
}


def german_world(directory: Path, *, rows: int, seed: int) -> Path:
    """The questions of a demo world of `rows` that are about a picture, with German choices."""
    table = write_world(directory, rows=rows, seed=seed, kinds=["visual"])
    target = table.with_name("german.csv")
    with table.open(newline="") as source, target.open("w", newline="") as stream:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(stream, reader.fieldnames or [])
        writer.writeheader()
        for row in reader:
            choices = [GERMAN[choice] for choice in json.loads(row["answer_choices"])]
            german = {"answer_choices": json.dumps(choices), "label": GERMAN[row["label"]]}
            writer.writerow({**row, **german})
    return target


def tune(bundle: Bundle, folder: Path, *, rows: int, steps: int) -> Path:
    """An adapter trained on the generator of a bundle in 4 bits; its folder."""
    retriever = folder / "retriever"
    shutil.copytree(bundle.retriever_dir, retriever)
    write_retriever_spec(retriever, read_spec(bundle.retriever_dir))
    spec = bundle.manifest.generator
    return train_generator(
        GeneratorConfig(
            base=bundle.generator_dir,
            table=german_world(folder / "tuning", rows=rows, seed=9301),
            out=folder / "run",
            steps=steps,
            batch_size=16,
            learning_rate=2e-3,
            top_k=spec.top_k,
            max_images=spec.max_images,
            scoring=spec.scoring,
            retriever=retriever,
            max_prompt_tokens=spec.max_prompt_tokens,
            lora_rank=16,
            lora_alpha=32,
            four_bits=True,
            gradient_checkpointing=True,
            held_out=rows // 50,
            save_every=max(1, steps // 4),
        )
    )


def line(name: str, accuracy: Accuracy | None, seconds: float) -> str:
    assert accuracy is not None  # the demo world has labels
    interval = f"{accuracy.low:.3f} to {accuracy.high:.3f}"
    return f"| {name} | {accuracy.value:.3f} | {interval} | {accuracy.rows} | {seconds:.0f} |"


def main(
    rows: Annotated[int, typer.Option(help="Of the world to learn from; a fifth is used.")] = 4000,
    steps: Annotated[int, typer.Option(help="Of 16 rows each.")] = 200,
    asked: Annotated[int, typer.Option(help="Rows of the world to answer, likewise.")] = 1000,
) -> None:
    """Measure a generator before and after QLoRA."""
    start_logging()
    bundle = open_bundle(DEMO_BUNDLE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = german_world(folder / "asked", rows=asked, seed=9302)
        before = answer(bundle, bundle.generator_dir, table).overall.accuracy
        started = monotonic()
        adapter = tune(bundle, folder, rows=rows, steps=steps)
        seconds = monotonic() - started
        report = write_generator(bundle.generator_dir, adapter, folder / "merged")
        after = answer(bundle, folder / "merged", table).overall.accuracy
    lines = [
        "| generator | accuracy | 95% interval | rows | seconds to train |",
        "|---|---|---|---|---|",
        line("base", before, 0),
        line(f"QLoRA, {steps} steps, merged", after, seconds),
        f"\n{report.merged} weights merged; logits differ by at most {report.logits:.1e}",
    ]
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
