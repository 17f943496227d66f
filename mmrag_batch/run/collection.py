"""A collection of a Qdrant server is made what a corpus is: what is new or has changed is sent,
what is gone is removed, the rest costs a look.

While that goes on the collection names no version, and nobody searches it; a command that was
killed goes on where it had come.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from mmrag_batch.errors import ConfigError, MissingError, OutputError
from mmrag_batch.masking import mask
from mmrag_batch.progress import Progress
from mmrag_batch.retrieval.candidates import Address
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import MANIFEST, Models, short_hash
from mmrag_batch.retrieval.qdrant_server import OURS, Filled, Server
from mmrag_batch.stages import in_batches

BATCH = 256
"""Documents of a request: 3 MB at 1,024 dimensions."""
PAGE = 10_000
"""Names of points of a request."""


@dataclass(slots=True)
class Sent:
    """How many documents the collection has, and how many were added, or changed, or removed."""

    documents: int = 0
    added: int = 0
    removed: int = 0


def fill(directory: Path, address: Address) -> Sent:
    """Let a collection hold the documents of the corpus in `directory`, with its vectors.

    Raises MissingError where that is no corpus, what `Corpus` and `Server` do, and OutputError for
    a collection of something else.
    """
    if not (directory / MANIFEST).is_file():
        raise MissingError(
            f"{directory} is no corpus, which a collection is filled from. Make one: `mmrag-batch "
            f"index {directory} CORPUS`, then `mmrag-batch index CORPUS {mask(str(address))}`."
        )
    server, corpus, sent = Server(address), Corpus(directory), Sent()
    models = corpus.manifest.models
    _make(server, models)
    seen: set[bytes] = set()
    with Progress("Filling the collection", len(corpus), "documents") as progress:
        for batch in in_batches(_points(corpus), BATCH):
            seen.update(point["id"].bytes for point in batch)
            sent.added += _send(server, batch)
            progress.advance(len(batch))
    for ids in in_batches(_ids(server), PAGE):
        if gone := [one for one in ids if UUID(str(one)).bytes not in seen]:
            server.ask(server.client.delete, gone)
            sent.removed += len(gone)
    sent.documents = server.count()
    _mark(server, Filled(models, corpus.version))
    return sent


def _make(server: Server, models: Models) -> None:
    """Let there be a collection without a version. Raises OutputError where there is another."""
    from qdrant_client import models as api

    try:
        filled = server.read()
    except MissingError:
        size = api.VectorParams(
            size=models.size, distance=api.Distance.DOT, datatype=api.Datatype.FLOAT16
        )
        said = {OURS: asdict(Filled(models, ""))}
        server.ask(server.client.create_collection, size, metadata=said)
        server.read()
        return
    except ConfigError as error:
        raise OutputError(str(error)) from None
    if filled.models.size != models.size:
        raise OutputError(
            mask(
                f"{server.address} has vectors of {filled.models.size} dimensions, and the corpus "
                f"of {models.size}. Name another collection."
            )
        )
    _mark(server, Filled(models, ""))


def _mark(server: Server, filled: Filled) -> None:
    server.ask(server.client.update_collection, metadata={OURS: asdict(filled)})


def _points(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Every document as a point, called by the hash of its id; `content` is that of all of it."""
    made_by = [corpus.manifest.models.encoders, corpus.manifest.models.tower]
    for record, vector in corpus.each():
        means = json.dumps([record, made_by], sort_keys=True)
        yield {
            "id": UUID(bytes=short_hash(record["id"])),
            "vector": vector.tolist(),
            "payload": {**record, "content": hashlib.sha256(means.encode()).hexdigest()},
        }


def _send(server: Server, batch: list[dict[str, Any]]) -> int:
    """Send the points that are not there as they are; how many those were."""
    from qdrant_client.models import PointStruct

    ids = [str(point["id"]) for point in batch]
    known = {
        str(one.id): (one.payload or {}).get("content")
        for one in server.ask(server.client.retrieve, ids, with_payload=["content"])
    }
    fresh = [
        PointStruct(id=name, vector=point["vector"], payload=point["payload"])
        for name, point in zip(ids, batch)
        if known.get(name) != point["payload"]["content"]
    ]
    if fresh:
        server.ask(server.client.upsert, fresh)
    return len(fresh)


def _ids(server: Server) -> Iterator[Any]:
    """The names of all points."""
    offset: Any = None
    while True:
        points, offset = server.ask(
            server.client.scroll, limit=PAGE, offset=offset, with_payload=False
        )
        yield from (point.id for point in points)
        if offset is None:
            return
