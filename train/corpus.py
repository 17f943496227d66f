"""Rows whose documents are those of a corpus: the ones that help, and the nearest that do not.

What helps a question is what `relevant` names. Against it stand hard negatives: documents that the
models which made the corpus find nearest to the question, by its own vectors. Their embeddings are
in the store beside it, so nothing is encoded again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.images.both import TableAndCorpus
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.parts import find_manifest
from mmrag_batch.progress import Progress
from mmrag_batch.records import Row
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import find_image_root, models_of, read_corpus
from mmrag_batch.retrieval.corpus_source import document_of
from mmrag_batch.retrieval.embedder import Embedding
from mmrag_batch.retrieval.retriever import Towers, open_embedder
from mmrag_batch.sources import CORPUS, split_page
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.rows import read_records
from mmrag_batch.train.data import EmbeddedTable, embed_table
from mmrag_batch.train.settings import RetrieverConfig
from mmrag_batch.train.supervision import by_relevant

HELD_OUT = 100
"""Negatives that held-out questions are ranked against, however many are trained on."""
TOGETHER = 256
"""Questions that share a pass over the vectors."""
SPARE = 20
"""Documents that are found beyond those, as some of them help."""
SHOWN = 3
log = logging.getLogger(__name__)

Places = Mapping[int, Sequence[int]]
"""Row number -> places of documents in a corpus."""


class CorpusDocuments:
    """What is relevant to rows, in a corpus; `rows` are all of the table.

    An id that the corpus does not have is left out, with a warning. Raises InputError where it has
    none of them.
    """

    def __init__(self, corpus: Corpus, rows: Iterable[Row]) -> None:
        self.corpus = corpus
        relevant: dict[tuple[str, str | None], set[str]] = {}
        self._asked: dict[int, tuple[str, str | None]] = {}
        for row in rows:
            if row.question is not None and row.question.relevant:
                self._asked[row.number] = asked = (row.question.text, row.question.image)
                here = (one for one in row.question.relevant if one.startswith(CORPUS))
                relevant.setdefault(asked, set()).update(here)
        self._relevant = relevant
        names = sorted(set().union(*relevant.values()))
        places = corpus.find([name.removeprefix(CORPUS) for name in names])
        self._places = {name: place for name, place in zip(names, places) if place >= 0}
        if absent := [name for name in names if name not in self._places]:
            what = f"{len(absent):,} of {len(names):,} relevant documents are not in the corpus: "
            some = what + ", ".join(absent[:SHOWN])
            if not self._places:
                raise InputError(f"{some}. `relevant` names documents by their `id` there.")
            log.warning("%s%s.", some, ", ..." if len(absent) > SHOWN else "")

    def attach(self, rows: Iterable[Row], negatives: Places) -> Iterator[Row]:
        """The rows with their documents of the corpus behind their own: what helps, then the
        negatives."""
        for row in rows:
            question = row.question
            if question is not None:
                wanted = sorted(question.relevant or ())
                places = [self._places[name] for name in wanted if name in self._places]
                places += negatives.get(row.number, ())
                found = tuple(document_of(self.corpus.read(place)) for place in places)
                row.question = replace(question, documents=(*question.documents, *found))
            yield row

    def mine(
        self, table: EmbeddedTable, towers: Towers, counts: Mapping[int, int]
    ) -> dict[int, list[int]]:
        """For each row number in `counts` so many of the nearest documents that do not help its
        question, nor an equal one, nor have the contents of one that does. `table` has the
        embeddings of the questions."""
        numbers = [number for number in table.numbers.tolist() if counts.get(number)]
        at = {number: index for index, number in enumerate(table.numbers.tolist())}
        found: dict[int, list[int]] = {}
        with Progress("Searching the corpus", len(numbers), "questions") as progress:
            for start in range(0, len(numbers), TOGETHER):
                part = numbers[start : start + TOGETHER]
                modalities, present = table.embeddings(table.questions[[at[one] for one in part]])
                sides = zip(modalities.numpy(), present.numpy())
                vectors = towers.questions([Embedding(*side) for side in sides])
                count = max(counts[number] for number in part) + SPARE
                for number, places in zip(part, self.corpus.search(vectors, count).places):
                    near = self._without_relevant(number, places[places >= 0].tolist())
                    found[number] = near[: counts[number]]
                progress.advance(len(part))
        return found

    def _without_relevant(self, number: int, places: Sequence[int]) -> list[int]:
        names = self._relevant[self._asked[number]]
        helpful = [self.corpus.read(self._places[one]) for one in names if one in self._places]
        contents = {(one["text"], one["digest"] or one["image"]) for one in helpful}
        return [
            place
            for place in places
            for one in [self.corpus.read(place)]
            if (one["text"], one["digest"] or one["image"]) not in contents
            and not {CORPUS + one["id"], CORPUS + split_page(one["id"])[0]} & names
        ]


def check_corpus(directory: Path, retriever: Path) -> str:
    """The version of a corpus. Raises ConfigError where the bundle that a retriever's folder lies
    in did not make its vectors, and what `read_corpus` does."""
    manifest = read_corpus(directory)
    bundle = find_manifest(retriever)
    if bundle is None:
        raise ConfigError(
            f"corpus: `encoders` must be the bundle that {directory} was made with; {retriever} is "
            "none. Make one: `mmrag-batch export --encoders DIR --generator DIR --out NEW`."
        )
    if manifest.models != models_of(bundle):
        raise ConfigError(
            f"corpus: {directory} was made with other models than those of {retriever.parent}: "
            "name that bundle in `encoders`, or index it again, "
            f"`mmrag-batch index DOCS {directory} --bundle {retriever.parent}`."
        )
    return manifest.version


def embed_with_negatives(
    config: RetrieverConfig,
    spec: RetrieverSpec,
    store: Path,
    read: Callable[[RetrieverConfig, ImageStore], Iterator[Row]],
    split: Callable[[EmbeddedTable], tuple[EmbeddedTable, EmbeddedTable]],
) -> tuple[EmbeddedTable, EmbeddedTable]:
    """The questions that are held out and the others, as `split` parts them by themselves and what
    helps them; each with that and, as negatives, the nearest that does not. `read` gives the rows
    of the table."""
    assert config.corpus is not None
    shared = ImageLoader(find_image_root(config.corpus))
    images = TableAndCorpus(ImageLoader(config.table.parent), shared)
    embedder = open_embedder(config.encoders, spec, images, device="cpu", store=store)
    documents = CorpusDocuments(Corpus(config.corpus), read(config, images))
    total = sum(1 for _ in read_records(config.table, parse_names(config.columns)))

    def embed(negatives: Places) -> EmbeddedTable:
        rows = documents.attach(read(config, images), negatives)
        return embed_table(rows, embedder, by_relevant, config.out, total=total)

    table = embed({})
    held_out, trained = (part.numbers.tolist() for part in split(table))
    counts = dict.fromkeys(held_out, HELD_OUT) | dict.fromkeys(trained, config.hard_negatives)
    towers = Towers(config.encoders, device="cpu")
    table = embed(documents.mine(table, towers, counts))
    at = {number: index for index, number in enumerate(table.numbers.tolist())}
    first, second = (torch.tensor([at[one] for one in part]) for part in (held_out, trained))
    return table.take(first), table.take(second)
