"""What hard negatives of a corpus gain, on held-out questions over all of its documents.

    python -m benchmarks.hard_negatives [--rows 1600] [--trained 600] [--seeds 1]

Two corpora, indexed by the packaged bundle. `pooled`: the documents of the rows of a demo world,
each row of which deals its own facts, so that much of what is near to a question says something
else about the same thing. `one world`: one text for each fact of each thing of each city. Towers
are trained from nothing on some of the questions, with and without hard negatives, and rank all
documents of the corpus for the others. Prints a table in Markdown.
"""

import csv
import json
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer

from benchmarks.corpus_world import ask, call, pool
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import read_spec
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.embedder import Embedding
from mmrag_batch.retrieval.retriever import open_embedder
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.sources import CORPUS
from mmrag_batch.table.documents import read_documents
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.demo_world import CITIES, FACTS, THINGS, statement, write_world
from mmrag_batch.train.ranking import recall_gain, summary
from mmrag_batch.train.retriever import train_retriever
from mmrag_batch.train.settings import RetrieverConfig
from mmrag_batch.train.towers import Tower, Towers, load_towers, untrained_towers

UNTRAINED = -1


def pooled(folder: Path, rows: int, seed: int) -> None:
    """docs.csv and bare.csv of a demo world."""
    world = list(read_labelled_rows(write_world(folder, rows=rows, seed=seed)))
    pool(world, folder / "docs.csv")
    ask([row for row in world if row.question and row.question.relevant], folder / "bare.csv")


def one_world(folder: Path, rows: int, seed: int) -> None:
    """The same of one document for each fact of each thing of some cities, and of so many
    questions."""
    rng = Random(seed)
    documents, questions = [], []
    for thing, city, fact in product(THINGS, rng.sample(CITIES, 12), FACTS):
        name = f"{thing.name} of {city}"
        told = statement(rng, fact, name, rng.choice(FACTS[fact].values))
        documents.append((f"{name}, {fact}", told))
        asked = rng.choice(FACTS[fact].questions).format(x=name)
        questions.append((asked, json.dumps([documents[-1][0]])))
    write(folder / "docs.csv", ("id", "text"), documents)
    write(folder / "bare.csv", ("question_text", "relevant"), rng.sample(questions, rows))


WORLDS = {"pooled": pooled, "one world": one_world}


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def part(table: Path, trained: int, seed: int) -> tuple[Path, Path]:
    """So many questions to train on, and those that share no relevant document with them."""
    with table.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    at = header.index("relevant")
    rows = Random(seed).sample(rows, len(rows))
    known = {row[at] for row in rows[:trained]}
    train, test = table.with_name("train.csv"), table.with_name("test.csv")
    write(train, header, rows[:trained])
    write(test, header, [row for row in rows[trained:] if row[at] not in known])
    return train, test


@torch.inference_mode()
def unit_vectors(tower: Tower, embeddings: Sequence[Embedding]) -> torch.Tensor:
    modalities, present = (
        torch.stack([torch.from_numpy(getattr(one, name)) for one in embeddings])
        for name in ("modalities", "present")
    )
    return tower(modalities, present)  # type: ignore[no-any-return]


class Asked:
    """Questions, and all documents of a corpus, to be ranked by towers."""

    def __init__(self, folder: Path, table: Path) -> None:
        retriever = DEMO_BUNDLE / "retriever"
        store = (
            folder / "corpus" / "embeddings" / Corpus(folder / "corpus").manifest.models.encoders
        )
        images = ImageLoader(folder)
        embedder = open_embedder(retriever, read_spec(retriever), images, device="cpu", store=store)
        listed = [one.document for one in read_documents(folder / "docs.csv") if one.document]
        embedded = embedder.embed_documents(listed)
        kept = [(d.id, e) for d, e in zip(listed, embedded) if isinstance(e, Embedding)]
        self.documents = [one for _, one in kept]
        self.size = self.documents[0].modalities.shape[1]
        at = {CORPUS + name: number for number, (name, _) in enumerate(kept)}
        rows = list(read_labelled_rows(table))
        self.questions = [one.question for one in embedder.embed(rows, bare=True) if one]
        self.relevant = [
            [at[name] for name in row.question.relevant or ()] for row in rows if row.question
        ]

    def ranks(self, towers: Towers) -> torch.Tensor:
        """(Q,): from 1, that of the best relevant document among all."""
        scores = (
            unit_vectors(towers.question, self.questions)
            @ unit_vectors(towers.document, self.documents).T
        )
        best = torch.stack([row[wanted].max() for row, wanted in zip(scores, self.relevant)])
        return 1 + (scores > best[:, None]).sum(dim=1)


def main(
    rows: Annotated[int, typer.Option(help="Questions.")] = 1600,
    trained: Annotated[int, typer.Option(help="Of these; the others are held out.")] = 600,
    seed: Annotated[int, typer.Option(help="Of the first world; others follow.")] = 9601,
    seeds: Annotated[int, typer.Option(help="Worlds, and trainings.")] = 1,
    negatives: Annotated[str, typer.Option(help="Hard negatives a question.")] = "0,7,30",
    worlds: Annotated[str, typer.Option(help="Which corpora.")] = "pooled,one world",
) -> None:
    """Train with and without, and compare."""
    typer.echo("| corpus | hard negatives | questions | recall@1 | MRR | gain (95%) |")
    typer.echo("|---|---|---|---|---|---|")
    counts = [int(one) for one in negatives.split(",")]
    for world in worlds.split(","):
        found: dict[int, list[torch.Tensor]] = {count: [] for count in (UNTRAINED, *counts)}
        for number in range(seed, seed + seeds):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                WORLDS[world](folder, rows, number)
                call("index", folder / "docs.csv", folder / "corpus")
                start_logging()  # here again
                train, test = part(folder / "bare.csv", trained, number)
                asked = Asked(folder, test)
                found[UNTRAINED].append(asked.ranks(untrained_towers(asked.size)))
                for count in counts:
                    config = RetrieverConfig(
                        encoders=Path("demo"),
                        table=train,
                        out=folder / f"run{count}",
                        corpus=folder / "corpus",
                        hard_negatives=count,
                        epochs=40,
                        batch_size=32,
                        learning_rate=1e-3,
                        hidden_size=192,
                        seed=number,
                    )
                    found[count].append(asked.ranks(load_towers(train_retriever(config))))
        without = torch.cat(found[counts[0]])
        for count, parts in found.items():
            ranks = torch.cat(parts)
            gain = recall_gain(without, ranks)
            typer.echo(
                f"| {world} | {'untrained' if count == UNTRAINED else count} | {len(ranks):,} | "
                f"{summary(ranks).recall_at_1:.3f} | {summary(ranks).mrr:.3f} | "
                f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) |"
            )


if __name__ == "__main__":
    typer.run(main)
