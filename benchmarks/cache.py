"""What the cache of embeddings is worth to retrieval, and costs where no document repeats.

    python -m benchmarks.cache

Rows with 16 documents of some 60 tokens each go through the retrieval stage, on encoders of
ImageBind's width with two of their layers: without a cache, and with one where none, half, or nine
tenths of the documents are among those that came before. Prints a table in Markdown.
"""

import string
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import typer

from benchmarks.encoders import wide
from benchmarks.ratios import REPETITIONS, Ratio, interleave, per, shown
from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.machine import cores
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.retrieval.cache import Cache, EmbeddingCache
from mmrag_batch.retrieval.embedder import Embedder
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.retriever import Retriever, RowDocuments, Towers

ROWS, DOCUMENTS = 8, 16
LETTERS = 60
SHARES = {"a": 0, "b": 50, "c": 90}
"""Of documents that repeat, in percent, by the letter of the line."""
Scores = list[list[float]]


class NoCache:
    """Forgets at once."""

    def get(self, key: str) -> Floats | None:
        """Nothing."""

    def put(self, key: str, embedding: Floats) -> None:
        """Nor is anything kept."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What stays open from one run to the next."""

    encoder: Encoder
    towers: Towers
    images: ImageLoader

    def run(self, cache: Cache, rows: Sequence[Row]) -> Scores:
        """The scores of each row's best documents."""
        embedder = Embedder(self.encoder, cache, self.images)
        retriever = Retriever(RowDocuments(embedder, self.towers, top_k=3, temperature=1))
        return [[found.score for found in row.evidence] for row in retriever(iter(rows))]


def rows_of(share: int) -> list[Row]:
    """Rows of whose documents `share` percent are those of other rows, drawn alike each time."""
    random = Random(share)
    count = ROWS * DOCUMENTS * (100 - share) // 100

    def words(letters: int) -> str:
        return "".join(random.choices(string.ascii_lowercase + "    ", k=letters))

    texts = [words(LETTERS) for _ in range(count)]
    endless = (Document(str(n), texts[n % count], None) for n in range(ROWS * DOCUMENTS))
    return [
        Row(n, n, str(n), {}, Question(words(10), None, (), tuple(islice(endless, DOCUMENTS))))
        for n in range(ROWS)
    ]


def measure(repetitions: int) -> dict[str, list[float]]:
    """How much faster than without a cache, or than rows that repeat nothing, by letter."""
    graphs: Path = wide() / "fp32"
    spec = read_retriever_spec(graphs)
    stage = Stage(
        Encoder(graphs, spec, device="cpu", threads=cores()),
        Towers(graphs, device="cpu", threads=cores()),
        ImageLoader(graphs),
    )
    rows = {letter: rows_of(share) for letter, share in SHARES.items()}
    count, capacity = len(SHARES) * (repetitions + 1), 2 * ROWS * DOCUMENTS
    caches = iter([EmbeddingCache(capacity, spec.embedding_size) for _ in range(count)])
    for one in rows.values():  # a cache changes nothing
        cached, plain = stage.run(next(caches), one), stage.run(NoCache(), one)
        assert np.allclose(cached, plain, atol=1e-5)
    sides: dict[str, Callable[[int], Scores]] = {
        letter: lambda _, letter=letter: stage.run(next(caches), rows[letter])  # type: ignore[misc]
        for letter in SHARES
    }
    sides["without"] = lambda _: stage.run(NoCache(), rows["a"])
    seconds = interleave(sides, repetitions)
    found = {letter: per(seconds["a"], seconds[letter]) for letter in "bc"}
    return {"a": per(seconds["without"], seconds["a"]), **found}


def ratios(_keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """For each share of documents that repeat."""
    for letter, values in measure(repetitions).items():
        yield Ratio(f"9{letter}", values)


def main() -> None:
    """Print the table."""
    typer.echo("| documents that repeat | times as fast |\n|---|---|")
    for letter, values in measure(REPETITIONS).items():
        typer.echo(f"| {SHARES[letter]}% | {shown(values)} |")


if __name__ == "__main__":
    typer.run(main)
