"""An approximate index of a corpus: which of its documents are worth a look.

An inverted file of k-means lists, whose documents are codes of one bit a dimension (RaBitQ, Gao and
Long 2024) after a random rotation, without which the few dimensions that say most would have no
more bits than the others. The index only chooses: each document that it names is scored by its
vector as the exact search does it, so its score is exact and what is missed is all that can be
wrong. How much that is, is measured when the index is made.

It is derived from segments that never change, and can be made again at any time. Documents that
came after it are searched exactly beside it.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.errors import MissingError
from mmrag_batch.extras import requires
from mmrag_batch.machine import cores
from mmrag_batch.progress import Progress
from mmrag_batch.retrieval.corpus_segment import OpenSegment
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.search import PAIRS, Best, Nearest, find_nearest, score

PER_LIST = 40
"""Vectors that k-means sees for each list."""
ROUNDS = 8
"""Of k-means: the lists are about as good as after any more."""
LOOK = 4
"""Times as many documents as are wanted are scored, and at least 4 * 50 of them."""
RECALL, DEPTH, QUESTIONS = 0.99, 50, 256
"""As many lists are looked through as find this share of the best DEPTH, for so many documents of
the corpus in the place of questions."""
log = logging.getLogger(__name__)


class ApproximateIndex:
    """The index of some segments, by name, of which `places` gives where in the corpus their rows
    begin, and `probes` how many lists are looked through for a question. Segments that the index
    has and the corpus has no more are passed over."""

    def __init__(
        self,
        index: Any,
        covers: Mapping[str, int],
        segments: Mapping[str, OpenSegment],
        places: Mapping[str, int],
        *,
        probes: int,
        threads: int | None = None,
    ) -> None:
        import faiss

        self._index = index
        faiss.extract_index_ivf(index).nprobe = probes
        self._segments = [segments.get(name) for name in covers]
        self._places = [places.get(name, 0) for name in covers]
        self._first = np.cumsum([0, *covers.values()])
        self._threads = threads or cores()

    def add_best(self, questions: Floats, best: Best) -> None:
        """Add to `best` the documents that are worth a look for each of `questions` (Q, D)."""
        wanted = LOOK * max(DEPTH, best.count)
        rows = self._choose(questions, min(wanted, int(self._first[-1])))
        columns = np.repeat(np.arange(len(questions)), rows.shape[1])
        order = np.argsort(rows, axis=None)
        columns, flat = columns[order], rows.ravel()[order]
        for number, segment in enumerate(self._segments):
            start, stop = np.searchsorted(flat, self._first[number : number + 2])
            if segment is None or start == stop:
                continue
            here = flat[start:stop] - self._first[number]
            is_alive = segment.alive[here]
            here, asked = here[is_alive], columns[start:stop][is_alive]
            scores = np.empty(len(here), np.float32)
            for first in range(0, len(here), PAIRS):
                part = slice(first, first + PAIRS)
                own, back = np.unique(here[part], return_inverse=True)
                vectors = segment.gather(own, questions.shape[1]).astype(np.float32)
                scores[part] = score(vectors[back], questions[asked[part]])
            best.add(asked, scores, segment.ties[here], here + self._places[number])

    def _choose(self, questions: Floats, count: int) -> NDArray[np.int64]:
        """(Q, `count`) rows of the index, -1 where there are no more. Questions are looked up one
        by one: together, how they round would depend on which they are."""
        if not len(questions) or not count:
            return np.empty((len(questions), 0), np.int64)
        import faiss

        def look_up(question: Floats) -> NDArray[np.int64]:
            rows: NDArray[np.int64] = self._index.search(question[None], count)[1]
            return rows

        with ThreadPoolExecutor(
            self._threads, "faiss", initializer=faiss.omp_set_num_threads, initargs=(1,)
        ) as pool:
            return np.concatenate(list(pool.map(look_up, questions)))


def check_faiss() -> None:
    """Raise UnavailableError where faiss is not installed."""
    with requires("approximate"):
        import faiss  # noqa: F401


def read_index(path: Path) -> Any:
    """The index in a file. Raises UnavailableError without faiss, MissingError for another file."""
    check_faiss()
    import faiss

    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        what = str(error).splitlines()[-1]
        raise MissingError(f"{path} cannot be read by faiss {faiss.__version__}: {what}") from None


def build_index(
    segments: Mapping[str, OpenSegment], size: int, write: Callable[[bytes], object]
) -> tuple[int, float]:
    """Make an index of all rows of segments whose vectors have `size` dimensions, and `write` it;
    how many lists are to be looked through, and the recall at DEPTH that this gives. Raises
    ModuleNotFoundError without faiss, and what `write` raises."""
    import faiss

    rows = sum(segment.spec.rows for segment in segments.values())
    lists = max(1, min(2 ** round(log2(2 * rows**0.5)), rows // PER_LIST))
    index = faiss.index_factory(size, f"RR{size},IVF{lists},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.downcast_index(faiss.extract_index_ivf(index))
    inverted.qb = 8
    inverted.cp.niter, inverted.cp.min_points_per_centroid = ROUNDS, 1
    inverted.cp.max_points_per_centroid = PER_LIST
    random = np.random.default_rng(0)
    log.info("Making an approximate index of %s lists.", f"{lists:,}")
    index.train(_sample(segments, size, PER_LIST * lists, random))
    with Progress("Indexing approximately", rows, "documents") as progress:
        for segment in segments.values():
            for block in segment.blocks(size):
                index.add(block.vectors.astype(np.float32))
                progress.advance(len(block.vectors))
    # By way of Python, which says why a disk fails.
    faiss.write_index(index, faiss.PyCallbackIOWriter(write))
    return _tune(index, segments, size, lists, random)


def _tune(
    index: Any,
    segments: Mapping[str, OpenSegment],
    size: int,
    lists: int,
    random: np.random.Generator,
) -> tuple[int, float]:
    """How many lists find RECALL of what an exact search does, or all of them; and the recall."""
    covers = {name: segment.spec.rows for name, segment in segments.items()}
    places = dict(zip(covers, np.cumsum([0, *covers.values()]).tolist()))
    questions = _sample(segments, size, QUESTIONS, random)
    # Each finds itself first, by any index: DEPTH others are what is counted.
    blocks = (block for name in covers for block in segments[name].blocks(size, places[name]))
    exact = find_nearest(blocks, questions, DEPTH + 1)
    probes = max(1, lists // 64)
    while True:
        best = Best(len(questions), DEPTH + 1)
        ApproximateIndex(index, covers, segments, places, probes=probes).add_best(questions, best)
        recall = _recall(best.nearest(), exact)
        log.debug("%d of %d lists: recall@%d %.4f.", probes, lists, DEPTH, recall)
        if recall >= RECALL or probes == lists:
            return probes, recall
        probes = min(2 * probes, lists)


def _recall(some: Nearest, exact: Nearest) -> float:
    """The share of exact places, but for the first, that are among some."""
    shares = [
        np.isin(right[1:][right[1:] >= 0], found) for found, right in zip(some.places, exact.places)
    ]
    together = np.concatenate([np.empty(0, bool), *shares])
    return float(together.mean()) if len(together) else 1.0


def _sample(
    segments: Mapping[str, OpenSegment], size: int, count: int, random: np.random.Generator
) -> Floats:
    """(N, D): vectors of `count` live documents, or of all."""
    alive = [np.nonzero(segment.alive)[0] for segment in segments.values()]
    live = sum(map(len, alive))
    chosen = np.sort(random.choice(live, min(count, live), replace=False))
    parts: list[Floats] = []
    first = 0
    for segment, rows in zip(segments.values(), alive):
        start, stop = np.searchsorted(chosen, [first, first + len(rows)])
        own = rows[chosen[start:stop] - first]
        parts.append(segment.gather(own, size).astype(np.float32))
        first += len(rows)
    return np.concatenate(parts)
