"""Where the documents come from that may help: the row itself, or elsewhere.

Adding a source is a module with a function that opens it and an entry of `SOURCES`, or, from
elsewhere, a call of `add_source`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import ConfigError, RowError
from mmrag_batch.extras import requires
from mmrag_batch.masking import mask
from mmrag_batch.plugs import load, pick
from mmrag_batch.records import Evidence, Question, Row
from mmrag_batch.settings import PredictSettings
from mmrag_batch.sources import image_files
from mmrag_batch.stages import ImageStore


class Candidates(Protocol):
    """A source of documents."""

    def find(self, rows: Sequence[Row], /) -> Sequence[tuple[Evidence, ...]]:
        """The evidence for each of a window of rows, best first; nothing for one with an error.

        A question that cannot be read becomes an error of its row, a document that cannot be one of
        its problems; the digests of image files that the row names go to `row.images`.
        """
        ...


QDRANT = "qdrant+http"
_COLLECTION = re.compile(r"qdrant\+(https?):/{1,2}([^/].*)/([^/]+)")
Open = Callable[[PredictSettings, Bundle, ImageStore, int | None], Candidates]
"""The last is how many threads it may use; None: as many as there are cores."""


class Source(NamedTuple):
    """How a source is opened: by a function, or by one named `module:function` that nothing imports
    before. `key` gives what answers depend on beyond the row: where it changes, every row is asked.
    `version` is that of documents which come and go: where it changes, rows are asked for which
    others are found; they get a `found`. `extra` is what to install."""

    open: Open | str
    key: Callable[[PredictSettings], str] = lambda _: ""
    extra: str | None = None
    version: Callable[[PredictSettings], str] | str = lambda _: ""


SOURCES: dict[str, Source] = {
    "row": Source("mmrag_batch.retrieval.retriever:open_row_documents", extra="cpu"),
    "given": Source("mmrag_batch.retrieval.given:open_given_documents"),
    "corpus": Source(
        "mmrag_batch.retrieval.corpus_source:open_corpus",
        extra="cpu",
        version="mmrag_batch.retrieval.corpus_source:find_version",
    ),
    "qdrant": Source(
        "mmrag_batch.retrieval.qdrant:open_collection",
        extra="cpu",
        version="mmrag_batch.retrieval.qdrant:find_version",
    ),
}


def add_source(
    name: str,
    open_source: Open,
    *,
    key: Callable[[PredictSettings], str],
    version: Callable[[PredictSettings], str] = lambda _: "",
) -> None:
    """Let `--candidates NAME` mean this source."""
    SOURCES[name] = Source(open_source, key, version=version)


def name_source(settings: PredictSettings) -> str:
    """Which source these settings ask for: a corpus that is named is one, on a server or not."""
    if settings.corpus is None or settings.candidates != "row":
        return settings.candidates
    return "qdrant" if find_address(settings.corpus) else "corpus"


class Address(NamedTuple):
    """A collection of vectors on a server."""

    url: str
    collection: str

    def __str__(self) -> str:
        return f"qdrant+{self.url}/{self.collection}"


def find_address(corpus: Path) -> Address | None:
    """The collection that a corpus is, if it is none on disk. Raises ConfigError where it is not
    named as in `qdrant+http://host:6333/docs`. A Path has lost a slash of it."""
    if not str(corpus).startswith("qdrant+"):
        return None
    match = _COLLECTION.fullmatch(str(corpus))
    if match is None:
        raise ConfigError(
            mask(f"{corpus} names no collection; one is named as in {QDRANT}://host:6333/docs.")
        )
    return Address(f"{match[1]}://{match[2]}", match[3])


def find_source(name: str) -> Source:
    """The source of that name. Raises ConfigError where there is none."""
    return pick(SOURCES, name, option="--candidates")


def open_source(
    name: str, settings: PredictSettings, bundle: Bundle, images: ImageStore, threads: int | None
) -> Candidates:
    """The source of that name, opened."""
    source = find_source(name)
    with requires(source.extra):
        return load(source.open)(settings, bundle, images, threads)


def digest_files(question: Question, images: ImageStore) -> dict[str, str | None]:
    """The SHA-256 of the image files that a question names, by source; None for one that cannot be
    read, of which who loads it says why."""
    digests: dict[str, str | None] = {}
    for source in image_files(question):
        try:
            digests[source] = images.digest(source)
        except RowError:
            digests[source] = None
    return digests
