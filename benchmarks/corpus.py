"""What a corpus of a million documents costs: to make, to change, to search.

    python -m benchmarks.corpus [--documents 1000000] [--folder DIR]

Vectors of 1,024 dimensions in overlapping clusters stand in for what encoders and tower would give,
which takes days; the rest is what `mmrag-batch index` and `predict --corpus` run, on one core. Each
step is a process of its own; its seconds are those of the processor, user and system. Beside the
search there is a plain product in numpy, which finds the same. Prints two tables in Markdown.
"""

import csv
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from subprocess import PIPE, Popen
from time import process_time
from typing import Annotated
from unittest import mock

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.ratios import Ratio, interleave, per
from mmrag_batch.errors import RowError
from mmrag_batch.records import Document
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import Models
from mmrag_batch.retrieval.embedder import Embedding
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.run import index as indexing
from mmrag_batch.settings import PredictSettings

SIZE, CLUSTERS, NOISES, COUNT, DEPTH = 1024, 1000, 4093, 100, 50
CHANGED, SOME = 1000, 200_000
SPREAD = ((5 + np.arange(SIZE)) ** -0.5).astype(np.float32)
"""Of each dimension: few of them say most, as in what encoders give; 140 would say as much if all
said the same."""
seconds_of_vectors = 0.0


@cache
def _parts() -> tuple[Floats, Floats]:
    random = np.random.default_rng(0)
    return (
        random.standard_normal((CLUSTERS, SIZE), np.float32),
        random.standard_normal((NOISES, SIZE), np.float32),
    )


def make_vectors(numbers: Sequence[int]) -> Floats:
    """(N, SIZE) unit vectors, each of its number alone: a cluster's centre, and noise of its length
    that is turned on for each round of NOISES numbers."""
    centres, noises = _parts()
    vectors = np.empty((len(numbers), SIZE), np.float32)
    for at, number in enumerate(numbers):
        turns = number // NOISES % SIZE
        vectors[at, turns:] = noises[number % NOISES, : SIZE - turns]
        vectors[at, :turns] = noises[number % NOISES, SIZE - turns :]
        vectors[at] += centres[number % CLUSTERS]
    vectors *= SPREAD
    normed: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normed


def make_questions(count: int) -> Floats:
    """(N, SIZE) unit vectors, each near to a document."""
    near = make_vectors(range(7, 7 + 997 * count, 997))
    random = np.random.default_rng(1)
    noise = SPREAD * random.standard_normal(near.shape, np.float32)
    near += 0.7 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    normed: Floats = near / np.linalg.norm(near, axis=1, keepdims=True)
    return normed


class MadeUp:
    """An embedder and towers in one: the number that ends a text says which vector it has."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def embed_documents(self, documents: Sequence[Document]) -> list[Embedding | RowError]:
        """What the tower below reads."""
        numbers = [int((one.text or "").rpartition(" ")[2]) for one in documents]
        return [Embedding(np.array([n], np.float32), np.ones(1, np.float32)) for n in numbers]

    def documents(self, embeddings: Sequence[Embedding]) -> Floats:
        """Their vectors, and how long that took."""
        global seconds_of_vectors
        started = process_time()
        vectors = make_vectors([int(one.modalities[0]) for one in embeddings])
        seconds_of_vectors += process_time() - started
        return vectors


def write_documents(path: Path, first: int, stop: int) -> None:
    """A table of documents with a text of usual length."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "text", "source"])
        words = "a passage of a manual that says what the machine weighs and where it is kept " * 4
        table.writerows((f"d{n}", f"{words}{n}", "manual") for n in range(first, stop))


def index(folder: Path, approximate: bool) -> dict[str, object]:
    """Index the table in `folder`."""
    settings = PredictSettings(folder / "docs.csv", folder / "corpus")
    with (
        mock.patch.object(indexing, "models_of", lambda _: Models("made", "up", SIZE)),
        mock.patch.object(indexing, "open_embedder", MadeUp),
        mock.patch.object(indexing, "Towers", MadeUp),
    ):
        done = indexing.index(settings, typer.echo, approximate=approximate)
    return {"added": done.added, "removed": done.removed, "vectors": seconds_of_vectors}


def search(folder: Path, questions: int) -> dict[str, object]:
    """Search the corpus, and by a plain product as well."""
    started = process_time()
    corpus = Corpus(folder / "corpus", threads=1)
    opened = process_time() - started
    asked = make_questions(questions)
    started = process_time()
    found = corpus.search(asked, COUNT)
    exact = process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = process_time()
    places = multiply(corpus, asked)
    plain = process_time() - started
    recall = np.mean([np.isin(b, a[:DEPTH]).mean() for a, b in zip(found.places, places)])
    return {"open": opened, "search": exact, "plain": plain, "recall": recall, "peak": peak}


def multiply(corpus: Corpus, questions: Floats) -> list[NDArray[np.int64]]:
    """The best DEPTH by numpy alone, without a second look at what a product has rounded."""
    scores: list[Floats] = []
    places: list[NDArray[np.int64]] = []
    places_of = zip(corpus._segments, corpus._first.tolist())
    for block in (one for segment, first in places_of for one in segment.blocks(SIZE, first)):
        products = questions @ block.vectors.astype(np.float32).T
        if block.alive is not None:
            products[:, ~block.alive] = -2
        best = np.argpartition(-products, DEPTH, axis=1)[:, :DEPTH]
        scores.append(np.take_along_axis(products, best, 1))
        places.append(block.places[best])
    together, there = np.concatenate(scores, axis=1), np.concatenate(places, axis=1)
    best = np.argpartition(-together, DEPTH, axis=1)[:, :DEPTH]
    return list(np.take_along_axis(there, best, 1))


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Of a search beside a plain product, in a small corpus, exactly and then approximately."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(folder / "docs.csv", 0, SOME)
        asked = make_questions(64)
        for letter, approximate in (("a", False), ("b", True)):
            index(folder, approximate)
            corpus = Corpus(folder / "corpus")
            sides: dict[str, Callable[[int], Sequence[NDArray[np.int64]]]] = {
                "ours": lambda _, corpus=corpus: list(corpus.search(asked, COUNT).places),  # type: ignore[misc]
                "plain": lambda _, corpus=corpus: multiply(corpus, asked),  # type: ignore[misc]
            }
            seconds = interleave(sides, repetitions, agree=_are_found)
            yield Ratio(f"17{letter}", per(seconds["plain"], seconds["ours"]))


def _are_found(some: Sequence[NDArray[np.int64]], best: Sequence[NDArray[np.int64]]) -> bool:
    """Whether the best DEPTH are among the first of what is found, but for 2%."""
    return bool(np.mean([np.isin(b, a[:DEPTH]).mean() for a, b in zip(some, best)]) >= 0.98)


def run(*words: object) -> dict[str, float]:
    """A step in a process of its own: what it says, its seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.corpus", *map(str, words)]
    process = Popen(command, stdout=PIPE, text=True)  # noqa: S603  # our own command
    assert process.stdout is not None
    said = process.stdout.read().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise typer.Exit(1)
    seconds = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "memory": usage.ru_maxrss / 1024, **json.loads(said[-1])}


def measure(folder: Path, documents: int) -> None:
    """Every step, and its row."""
    typer.echo("| step | documents | seconds | of these for vectors | peak memory, MiB |")
    typer.echo("|---|---|---|---|---|")
    changed = (CHANGED, documents + CHANGED)
    steps = (
        ("make", 0, documents, False),
        ("the same again", 0, documents, False),
        (f"add {CHANGED:,} and remove {CHANGED:,}", *changed, False),
        ("make an approximate index", *changed, True),
        (f"add {CHANGED:,} and remove {CHANGED:,}", 2 * CHANGED, documents + 2 * CHANGED, True),
        ("remove a third, which writes segments anew", documents // 3, changed[1], False),
    )
    for number, (name, first, stop, approximate) in enumerate(steps):
        write_documents(folder / "docs.csv", first, stop)
        options = ("--approximate",) if approximate else ()
        done = run("--step", "index", "--folder", folder, *options)
        cells = f"{done['seconds']:.1f} | {done['vectors']:.1f} | {done['memory']:.0f}"
        typer.echo(f"| {name} | {stop - first:,} | {cells} |")
        if number in (2, 4):
            tell_search(folder, "approximate" if approximate else "exact")
    size = sum(file.stat().st_size for file in (folder / "corpus").rglob("*") if file.is_file())
    typer.echo(f"\n{size / 1e9:.2f} GB on disk in the end.")


def tell_search(folder: Path, kind: str) -> None:
    """The rows of the second table, to the log, for the first is not finished."""
    lines = [f"| {kind}, questions | open | search | a question | plain | recall@50 | memory |"]
    for questions in (64, 512):
        done = run("--step", "search", "--folder", folder, "--questions", questions)
        lines.append(
            f"| {questions} | {done['open']:.1f} | {done['search']:.1f} s | "
            f"{1000 * done['search'] / questions:.0f} ms | {done['plain']:.1f} s | "
            f"{done['recall']:.4f} | {done['peak']:.0f} MiB |"
        )
    typer.echo("\n".join(lines), err=True)


def main(
    documents: Annotated[int, typer.Option(help="In the corpus.")] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where it is made.")] = None,
    step: Annotated[str | None, typer.Option(hidden=True)] = None,
    questions: Annotated[int, typer.Option(hidden=True)] = 64,
    approximate: Annotated[bool, typer.Option("--approximate", hidden=True)] = False,
) -> None:
    """Make, change and search a corpus."""
    if step is not None and folder is not None:
        done = index(folder, approximate) if step == "index" else search(folder, questions)
        typer.echo(json.dumps(done))
        return
    with tempfile.TemporaryDirectory(dir=folder) as name:
        measure(Path(name), documents)


if __name__ == "__main__":
    typer.run(main)
