"""Documents -> a corpus: what is new or has changed is embedded, the rest costs a look.

    read        the rows of a table, or the files of a folder; a PDF is as many documents as pages
    look up     by id and content: an image counts by its bytes
    embed       by the bundle's encoders, through an embedding store that shards share
    write       vectors of its document tower, and the documents, in segments

The same command again goes on where this one ended. Shards embed only, each its part of the
documents, and need no order or lock; the command without a shard makes the corpus of all.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrag_batch.bundle import Bundle, RetrieverSpec
from mmrag_batch.errors import ConfigError, InputError, RowError
from mmrag_batch.factory import load_bundle, split_hosts
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Document, Problem, Question
from mmrag_batch.retrieval.approximate import check_faiss
from mmrag_batch.retrieval.corpus_manifest import (
    EMBEDDINGS,
    Approximate,
    Models,
    models_of,
    short_hash,
)
from mmrag_batch.retrieval.corpus_segment import Record
from mmrag_batch.retrieval.embedder import Embedder, Embedding
from mmrag_batch.retrieval.retriever import Towers, open_embedder
from mmrag_batch.retrieval.sessions import find_device
from mmrag_batch.run.copies import bring_bundle, looking_at
from mmrag_batch.run.corpus_writer import CorpusWriter
from mmrag_batch.run.progress import told
from mmrag_batch.run.shards import Shard
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import in_batches
from mmrag_batch.table.documents import (
    Listed,
    check_documents,
    parse_document_names,
    read_documents,
)

BATCH = 256
"""Documents that are embedded together."""
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Indexed:
    """What became of documents: how many are in the corpus, how many of these were added, or
    changed, and how many were removed; how many `broken` ones were left out; the approximate index,
    if it has one."""

    documents: int = 0
    added: int = 0
    removed: int = 0
    broken: int = 0
    index: Approximate | None = None


def index(
    settings: PredictSettings,
    report: Callable[[str], None],
    shard: Shard | None = None,
    *,
    approximate: bool = False,
) -> Indexed:
    """Let the corpus at `settings.output` hold the documents of `settings.input`, which is a table
    or a folder. `report` is told what is wrong with a document that is left out. A shard embeds its
    part, and writes no corpus. An `approximate` corpus is searched by an index that faiss makes.

    Raises what `looking_at`, `check_documents`, `load_bundle` and `CorpusWriter` do; InputError
    where no document can be read at all, which leaves the corpus as it was.
    """
    with looking_at(bring_bundle(settings)) as here:
        return _index(here, settings.input, report, shard, approximate=approximate)


def _index(
    settings: PredictSettings,
    called: Path,
    report: Callable[[str], None],
    shard: Shard | None,
    *,
    approximate: bool,
) -> Indexed:
    """The same of a table that is here, and of what it is called."""
    docs, names = settings.input, parse_document_names(settings.columns)
    notes = check_documents(docs, names)
    bundle = load_bundle(settings, weights=False)
    models, spec = models_of(bundle.manifest), bundle.manifest.retriever
    if models is None or spec is None:
        raise ConfigError(f"{settings.bundle} has no retriever, which a corpus is made with.")
    if approximate:
        check_faiss()
    for note in notes:
        log.warning("%s: %s", called, note)
    root = settings.image_root or (docs if docs.is_dir() else docs.parent)
    hosts, places = split_hosts(settings.allow_media_domain), split_hosts(settings.allow_remote)
    images = ImageLoader(root, hosts=hosts, places=places)
    done = Indexed()

    def listed() -> Iterator[_Item]:
        documents = told(read_documents(docs, names), f"documents of {called} are read")
        for number, one in enumerate(documents):
            if shard is None or number % shard.count == shard.index:
                for item in _items(one, images):
                    if isinstance(item, Problem):
                        done.broken += 1
                        report(f"{called}: {one.where}: {item.code}: {item.message}")
                    else:
                        yield item

    step = _Step(settings, called, bundle, spec, models, images)
    if shard is not None:
        for batch in in_batches(listed(), BATCH):
            done.added += len(step.embed(batch, done, report))
        return done
    with CorpusWriter(settings.output, models, root, approximate=approximate) as writer:
        for batch in in_batches(listed(), BATCH):
            step.write(batch, writer, done, report)
        if not done.documents:
            raise InputError(f"{called}: no document can be read; {settings.output} is as it was.")
        manifest = writer.finish()
    done.documents, done.added, done.removed = manifest.documents, writer.added, writer.removed
    done.index = manifest.approximate
    return done


@dataclass(slots=True)
class _Item:
    """A document on its way: where it stands, what is kept of it, the hashes of its id and of all
    that it is."""

    where: str
    document: Document
    record: Record
    name: bytes
    content: bytes


def _items(listed: Listed, images: ImageLoader) -> "Iterator[_Item | Problem]":
    """The document, or the pages of the PDF that it is."""
    if listed.document is None:
        yield listed.problem or Problem("bad_document", "it cannot be read")
        return
    for document in with_pages(Question("", None, (), (listed.document,)), images).documents:
        digest = None
        try:
            if document.image is not None:
                digest = images.digest(document.image)
        except RowError as error:
            yield Problem(error.code, str(error))
            continue
        record = {
            "id": document.id,
            "text": document.text,
            "image": document.image,
            "digest": digest,
            "other": dict(listed.other),
        }
        means = json.dumps(record, sort_keys=True, default=str)
        record = json.loads(means)
        yield _Item(listed.where, document, record, short_hash(document.id), short_hash(means))


class _Step:
    """Embeds and writes; models are loaded when there is a document for them."""

    def __init__(
        self,
        settings: PredictSettings,
        called: Path,
        bundle: Bundle,
        spec: RetrieverSpec,
        models: Models,
        images: ImageLoader,
    ) -> None:
        self._settings, self._called = settings, called
        self._bundle, self._spec = bundle, spec
        self._models, self._images = models, images
        self._embedder: Embedder | None = None
        self._towers: Towers | None = None

    def write(
        self,
        batch: Sequence[_Item],
        writer: CorpusWriter,
        done: Indexed,
        report: Callable[[str], None],
    ) -> None:
        """Add what the corpus does not have as it is."""
        states = writer.look_up([one.name for one in batch], [one.content for one in batch])
        fresh = []
        for item, state in zip(batch, states):
            done.documents += state == "same"
            if state == "twice":
                done.broken += 1
                what = f"an id of its own is needed, {item.document.id!r} came before"
                report(f"{self._called}: {item.where}: bad_document: {what}")
            elif state == "new":
                fresh.append(item)
        if not (embedded := self.embed(fresh, done, report)):
            return
        if self._towers is None:
            device = find_device(self._settings.device)
            self._towers = Towers(self._bundle.retriever_dir, device=device)
        vectors = self._towers.documents([embedding for _, embedding in embedded])
        for (item, _), vector in zip(embedded, vectors.astype(np.float16)):
            writer.add(item.name, item.content, item.record, vector)
        done.documents += len(embedded)

    def embed(
        self, batch: Sequence[_Item], done: Indexed, report: Callable[[str], None]
    ) -> list[tuple[_Item, Embedding]]:
        """The documents that can be, with their embeddings."""
        if not batch:
            return []
        if self._embedder is None:
            store = self._settings.embedding_cache or self._settings.output / EMBEDDINGS
            self._embedder = open_embedder(
                self._bundle.retriever_dir,
                self._spec,
                self._images,
                device=find_device(self._settings.device),
                store=Path(store) / self._models.encoders,
            )
        embedded = []
        results = self._embedder.embed_documents([item.document for item in batch])
        for item, result in zip(batch, results):
            if isinstance(result, RowError):
                done.broken += 1
                report(f"{self._called}: {item.where}: {result.code}: {result}")
            else:
                embedded.append((item, result))
        return embedded
