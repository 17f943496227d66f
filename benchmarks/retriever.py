"""What training the towers gains without relevance labels, and how fast it is on a cache.

    python -m benchmarks.retriever [--rows 1500] [--fresh 600] [--seed 9301] [--graphs DIR]

Draws a demo world, hides its column `relevant`, and trains towers on it by the right answers and by
the likelihoods of the packaged generator; and, with the column, by labels. Ranks the documents of
another world with each, beside the untrained towers: the frozen encoders alone. Then times an
epoch on cached embeddings and one that encodes what it reads, by the packaged encoders, which are a
thousandth of ImageBind, and by those in `--graphs`. Prints two tables in Markdown.
"""

import csv
import operator
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Annotated

import torch
import typer

from benchmarks.encoders import wide
from benchmarks.ratios import REPETITIONS, Ratio, interleave, per
from mmrag_batch.bundle import open_bundle, read_retriever_spec, write_retriever_spec
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import read_spec
from mmrag_batch.retrieval.embedder import Embedder
from mmrag_batch.retrieval.retriever import open_embedder
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.data import embed_table
from mmrag_batch.train.demo_world import write_world
from mmrag_batch.train.fitting import Fit, FitSettings
from mmrag_batch.train.ranking import ranks, recall_gain, summary
from mmrag_batch.train.retriever import train_retriever
from mmrag_batch.train.settings import RetrieverConfig
from mmrag_batch.train.supervision import SupervisionName, by_relevant
from mmrag_batch.train.towers import Towers, TowersConfig, load_towers

FEW, SOME = 64, 6
"""Rows that encoders of full size are timed on, and those of the table of docs/performance.md."""


def encoders(folder: Path) -> Path:
    """The packaged encoders as `mmrag-batch export encoders` leaves them."""
    bundle = open_bundle(DEMO_BUNDLE)
    shutil.copytree(bundle.retriever_dir, folder)
    write_retriever_spec(folder, read_spec(bundle.retriever_dir))
    return folder


def withheld(table: Path) -> Path:
    """The table without its column `relevant`, beside it."""
    out = table.with_name("withheld.csv")
    with table.open(newline="") as source, out.open("w", newline="") as stream:
        reader = csv.DictReader(source)
        names = [name for name in reader.fieldnames or [] if name != "relevant"]
        writer = csv.DictWriter(stream, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(reader)
    return out


def opened(graphs: Path, images: Path) -> Embedder:
    """The encoders, with nothing in their cache."""
    return open_embedder(graphs, read_retriever_spec(graphs), ImageLoader(images), device="cpu")


def epochs(
    graphs: Path, table: Path, rows: int, config: RetrieverConfig, repetitions: int = REPETITIONS
) -> dict[str, list[float]]:
    """Seconds of an epoch over the first rows of a table on cached embeddings, and of one that
    encodes what it reads."""
    labelled = list(islice(read_labelled_rows(table), rows))
    trained = embed_table(labelled, opened(graphs, table.parent), by_relevant)
    settings = FitSettings(
        epochs=3 * repetitions,  # more than are timed
        batch_size=min(config.batch_size, len(trained.questions)),
        learning_rate=config.learning_rate,
        hard_negatives=0,
        patience=repetitions,
        soft=False,
        seed=0,
    )
    towers = Towers(TowersConfig(trained.vectors.shape[1], config.hidden_size))
    fit = Fit(towers, trained, trained, settings, config.out / "timed.pt")
    embedders = iter([opened(graphs, table.parent) for _ in range(repetitions)])

    def cached(_: int) -> int:
        fit.train_epoch()
        return len(trained.questions)

    def encoding(_: int) -> int:
        embedded = embed_table(labelled, next(embedders), by_relevant)
        fit.train_epoch()
        return len(embedded.questions)

    return interleave({"cached": cached, "encoding": encoding}, repetitions, agree=operator.eq)


def timed(graphs: Path, table: Path, rows: int, config: RetrieverConfig) -> str:
    """One line of the second table."""
    seconds = epochs(graphs, table, rows, config)
    cached, encoding = map(median, seconds.values())
    ratio = median(per(seconds["encoding"], seconds["cached"]))
    name = read_retriever_spec(graphs).encoder
    return f"| {name}, {rows} rows | {cached:.3f} | {encoding:.1f} | {ratio:.0f}x |"


def config_of(packaged: Path, table: Path, folder: Path) -> RetrieverConfig:
    """How towers are trained here."""
    return RetrieverConfig(
        encoders=packaged,
        table=table,
        out=folder,
        epochs=16,
        batch_size=32,
        learning_rate=3e-4,
        hidden_size=192,
        generator=DEMO_BUNDLE / "generator",
        scoring="text",
        max_images=1,
        max_prompt_tokens=1024,
        embedding_cache=folder / "cache",
    )


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """An epoch on cached embeddings beside one that encodes, by encoders of ImageBind's width."""
    graphs = wide() / "fp32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_world(folder / "world", rows=SOME, seed=9301)
        seconds = epochs(graphs, table, SOME, config_of(graphs, table, folder), repetitions)
    yield Ratio("13", per(seconds["encoding"], seconds["cached"]))


def main(
    rows: Annotated[int, typer.Option(help="Of the world that is trained on.")] = 1500,
    fresh: Annotated[int, typer.Option(help="Of the world that is ranked.")] = 600,
    seed: Annotated[int, typer.Option(help="Of the first; the other's is the next.")] = 9301,
    graphs: Annotated[Path | None, typer.Option(help="Exported encoders to time, too.")] = None,
) -> None:
    """Train by each supervision and compare; time an epoch."""
    start_logging()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packaged = encoders(folder / "graphs")
        table = write_world(folder / "world", rows=rows, seed=seed)
        config = config_of(packaged, withheld(table), folder)
        other = write_world(folder / "fresh", rows=fresh, seed=seed + 1)
        asked = embed_table(read_labelled_rows(other), opened(packaged, other.parent), by_relevant)
        before = ranks(Towers(TowersConfig(asked.vectors.shape[1], 8)).eval(), asked)
        lines = [f"| untrained | {summary(before).recall_at_1:.3f} | | {summary(before).mrr:.3f} |"]
        kinds: list[tuple[SupervisionName, Path]] = [
            ("answer", config.table),
            ("likelihood", config.table),
            ("relevant", table),
        ]
        for name, source in kinds:
            started = monotonic()
            run = replace(config, supervision=name, table=source, out=folder / name)
            after = ranks(load_towers(train_retriever(run)), asked)
            gain = recall_gain(before, after)
            lines.append(
                f"| {name} | {summary(after).recall_at_1:.3f} | {gain.value:+.3f} "
                f"({gain.low:+.3f} to {gain.high:+.3f}) | {summary(after).mrr:.3f} | "
                f"{monotonic() - started:.0f} |"
            )
        times = [timed(packaged, table, rows, config)]
        if graphs is not None:
            times.append(timed(graphs, table, FEW, config))
    typer.echo(f"| {fresh} new rows | recall@1 | gain (95%) | MRR | s |\n|---|---|---|---|---|")
    typer.echo("\n".join(lines))
    typer.echo("\n| an epoch | cached, s | encoding, s | ratio |\n|---|---|---|---|")
    typer.echo("\n".join(times))


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
