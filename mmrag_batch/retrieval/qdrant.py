"""The third source of candidates: a collection of a Qdrant server, as a corpus that lies elsewhere.

`index CORPUS qdrant+http://host:6333/docs` fills it (`run/collection.py`). A point's payload is the
record of a document, its vector that of the corpus; the collection's metadata names the models, and
the version of the corpus that it was filled from.

The server only says which documents may be among the best. It is asked for an exact search, without
its approximate index, and for more than are wanted until the last one is clearly worse; what comes
back is scored and ordered here, as documents of a corpus are. So one and the other find the same.

A folder is as it was for whoever has begun to read it; a collection is not. Its version is what its
metadata and its number of points are, and is asked for again after each search: a run ends when it
has changed, and its rows are searched again by the same command.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import (
    ConfigError,
    InputError,
    MissingError,
    RowError,
)
from mmrag_batch.masking import mask
from mmrag_batch.retrieval.candidates import Address, Candidates, find_address
from mmrag_batch.retrieval.corpus_manifest import short_hash
from mmrag_batch.retrieval.corpus_segment import Record
from mmrag_batch.retrieval.corpus_source import find_models, open_documents
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.qdrant_server import Server
from mmrag_batch.retrieval.search import Nearest, score
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.cells import parse_document

TOGETHER = 16
"""Questions of a request: vectors come back as text, 10 bytes or so a dimension."""
SPARE = 16
"""Documents that are asked for beyond those that are wanted."""
SLACK = 2.0**-9
"""By how much the order of the server may be wrong: it may round a question to 16 bits, as it
does what it keeps."""


class Collection:
    """The documents of a collection; a `Searcher`. Raises what `Server` and its `read` do, and
    MissingError for one that is being filled."""

    def __init__(self, address: Address) -> None:
        self._server = Server(address)
        self._records: list[Record] = []
        self._look()

    def _look(self) -> None:
        self.filled = self._server.read()
        self._count = self._server.count()
        state = json.dumps([asdict(self.filled), self._count])
        self._version = hashlib.sha256(state.encode()).hexdigest()
        if not self.filled.version:
            address = self._server.address
            raise MissingError(
                f"{address} is not filled yet; run the command that was to fill it again: "
                f"`mmrag-batch index CORPUS {address}`."
            )

    @property
    def version(self) -> str:
        """That of what was searched last, if it was the same before."""
        return self._version

    def __len__(self) -> int:
        return self._count

    def search(self, questions: Floats, count: int, /) -> Nearest:
        """The best `count` for each of `questions` (Q, D), which are unit vectors."""
        scores = np.full((len(questions), count), -np.inf, np.float32)
        places = np.full((len(questions), count), -1, np.int64)
        self._records = []
        for start in range(0, len(questions) if count else 0, TOGETHER):
            wanted, limit = list(range(start, min(start + TOGETHER, len(questions)))), count + SPARE
            while wanted:
                again = []
                for at, points in zip(wanted, self._query(questions[wanted], limit), strict=True):
                    if (best := self._best(points, questions[at], count, limit)) is None:
                        again.append(at)
                        continue
                    scores[at, : len(best)] = [one for one, _ in best]
                    places[at, : len(best)] = range(
                        len(self._records), len(self._records) + len(best)
                    )
                    self._records += [record for _, record in best]
                wanted, limit = again, 2 * limit
        self._look()
        return Nearest(scores, places)

    def read(self, place: int, /) -> Record:
        """The document at a place that the last search gave."""
        return self._records[place]

    def _query(self, questions: Floats, limit: int) -> list[list[Any]]:
        """(Q, up to `limit`): what the server finds nearest, exactly but for its rounding."""
        from qdrant_client import models

        how = models.SearchParams(
            exact=True, quantization=models.QuantizationSearchParams(ignore=True)
        )
        requests = [
            models.QueryRequest(
                query=question.tolist(),
                limit=limit,
                params=how,
                with_payload=True,
                with_vector=True,
            )
            for question in questions
        ]
        answers = self._server.ask(self._server.client.query_batch_points, requests)
        return [answer.points for answer in answers]

    def _best(
        self, points: Sequence[Any], question: Floats, count: int, limit: int
    ) -> list[tuple[float, Record]] | None:
        """The best of the points, in the order of a corpus; None where one may be lacking."""
        if not points:
            return []
        records = [self._record(point) for point in points]
        vectors = np.array([point.vector for point in points], np.float16).astype(np.float32)
        scores = score(vectors, question)
        ties = [short_hash(record["id"])[:8] for record in records]
        order = sorted(range(len(points)), key=lambda at: (-scores[at], ties[at]))[:count]
        lowest = min(point.score for point in points)
        if len(points) == limit and lowest + SLACK >= scores[order[-1]]:
            return None
        return [(float(scores[at]), records[at]) for at in order]

    def _record(self, point: Any) -> Record:
        """A point's document. Raises InputError for a point that none was made of."""
        payload, size = point.payload or {}, self.filled.models.size
        try:
            if not isinstance(point.vector, list) or len(point.vector) != size:
                raise RowError("bad_document", f"its vector is not of {size} dimensions")
            item = {name: payload.get(name) for name in ("text", "title", "image")}
            document = parse_document(0, {**item, "id": str(payload.get("id", point.id))})
        except RowError as error:
            raise InputError(
                f"{self._server.address}, point {point.id}: {error}. Fill the collection anew: "
                f"`mmrag-batch index CORPUS {self._server.address}`."
            ) from None
        digest = payload.get("digest")
        return {
            "id": document.id,
            "text": document.text,
            "image": document.image,
            "digest": digest,
            "other": payload.get("other") or {},
        }


def open_collection(
    settings: PredictSettings, bundle: Bundle, images: ImageStore, threads: int | None
) -> Candidates:
    """The collection of these settings, to be searched with a bundle's retriever."""
    return open_documents(settings, bundle, images, threads, _open(settings))


def find_version(settings: PredictSettings) -> str:
    """The version of the collection. Raises ConfigError where none is named, or it was made with
    other models than the bundle's, and what `Collection` does."""
    return _open(settings).version


def _open(settings: PredictSettings) -> Collection:
    address = settings.corpus and find_address(settings.corpus)
    if not address:
        raise ConfigError("--candidates qdrant: name one, `--corpus qdrant+http://host:6333/docs`.")
    models, collection = find_models(settings.bundle), Collection(address)
    if collection.filled.models != models:
        raise ConfigError(
            mask(
                f"{address} was made with other models than those of {settings.bundle}: index the "
                f"documents with it, `mmrag-batch index DOCS CORPUS --bundle {settings.bundle}`, "
                f"then `mmrag-batch index CORPUS {address}`."
            )
        )
    return collection
