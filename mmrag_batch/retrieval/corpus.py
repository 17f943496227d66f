"""A corpus that is read: one manifest of it, whatever becomes of the folder meanwhile."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.bundle import hash_each
from mmrag_batch.errors import MissingError
from mmrag_batch.retrieval.approximate import ApproximateIndex, read_index
from mmrag_batch.retrieval.corpus_manifest import read_corpus, short_hash
from mmrag_batch.retrieval.corpus_segment import AGAIN, OpenSegment, Record
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.search import Best, Block, Nearest, scan

TRIES = 5


class Corpus:
    """The documents of the corpus in `directory`, each at a place from 0. Where it has an
    approximate index, that is searched by `threads`; None: one for each core.

    Every file is hashed when it is opened. Raises what `read_corpus` does, MissingError for files
    that are gone or not what they were, StorageError where the disk fails, UnavailableError for an
    approximate index without faiss.
    """

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        for attempt in range(TRIES):
            self.manifest = read_corpus(directory)
            try:
                check_files(directory, self.manifest.files())
                self._first = np.cumsum([0, *(one.rows for one in self.manifest.segments)])
                self._segments = [OpenSegment(directory, one) for one in self.manifest.segments]
                self._approximate = self._open_approximate(directory, threads)
                break
            except MissingError:
                # It was indexed again since, and files of before were removed.
                if attempt + 1 == TRIES or read_corpus(directory) == self.manifest:
                    raise

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def version(self) -> str:
        """That of what is searched."""
        return self.manifest.version

    def search(self, questions: Floats, count: int) -> Nearest:
        """The best `count` documents for each of `questions` (Q, D), which are unit vectors."""
        best = Best(len(questions), count)
        if self._approximate is not None:
            self._approximate.add_best(questions, best)
        scan(self._blocks(), questions, best)
        return best.nearest()

    def find(self, ids: Sequence[str]) -> list[int]:
        """The place of each document of different ids; -1 for none."""
        wanted = np.array([short_hash(name) for name in ids], "S16")
        at = {name: index for index, name in enumerate(wanted.tolist())}
        places = [-1] * len(ids)
        for first, segment in zip(self._first, self._segments):
            names = segment.rows["id"]
            for row in np.nonzero(np.isin(names, wanted) & segment.alive)[0]:
                places[at[names[row].item()]] = int(first + row)
        return places

    def read(self, place: int) -> Record:
        """The document at a place."""
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        return self._segments[number].record(place - int(self._first[number]))

    def each(self) -> Iterator[tuple[Record, NDArray[np.float16]]]:
        """Every document, and its vector (D,)."""
        for segment in self._segments:
            for block in segment.blocks(self.manifest.models.size):
                for at, row in enumerate(block.places):
                    if segment.alive[row]:
                        yield segment.record(int(row)), block.vectors[at]

    def _blocks(self) -> Iterator[Block]:
        """Of the segments that an approximate index does not cover."""
        covers = self.manifest.approximate.covers if self.manifest.approximate else {}
        for first, segment in zip(self._first, self._segments):
            if segment.spec.name not in covers:
                yield from segment.blocks(self.manifest.models.size, int(first))

    def _open_approximate(self, directory: Path, threads: int | None) -> ApproximateIndex | None:
        spec = self.manifest.approximate
        if spec is None:
            return None
        names = [one.spec.name for one in self._segments]
        segments, places = dict(zip(names, self._segments)), dict(zip(names, self._first.tolist()))
        index = read_index(directory / spec.name)
        what = (index, spec.covers, segments, places)
        return ApproximateIndex(*what, probes=spec.probes, threads=threads)


def check_files(directory: Path, files: Iterator[tuple[str, str]]) -> None:
    """Raise MissingError unless each file (its name, its SHA-256) is what it was."""
    names = dict(files)
    paths = [directory / name for name in names]
    try:
        digests = hash_each(paths, f"Checking {directory}")
    except FileNotFoundError as error:
        raise MissingError(f"{error.filename} is gone. {AGAIN}") from None
    for path, digest in zip(paths, digests):
        if digest != names[path.name]:
            raise MissingError(f"{path} is damaged. {AGAIN}")


def is_whole(directory: Path, files: Mapping[str, str]) -> bool:
    """Whether each file (its name, its SHA-256) is what it was."""
    with suppress(MissingError):
        check_files(directory, iter(files.items()))
        return True
    return False
