"""The documents nearest to questions, exactly, by their vectors in blocks.

A block is multiplied with all questions at once. How a product rounds depends on its shape, so it
only says which documents cannot be among the best: what comes within twice the largest error of
rounding is scored again, document by document in one fixed way. So neither the blocks nor the other
questions change a score or an order, and equal vectors score equally.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.retrieval.preprocess import Floats

PAIRS = 2048
"""Questions and documents that are scored again at once."""


class Block(NamedTuple):
    """Some documents: `vectors` (N, D) float16; which of them count, if not all do; `ties` (N,)
    uint64 order those of equal scores, and `places` (N,) say which they are."""

    vectors: NDArray[np.float16]
    alive: NDArray[np.bool_] | None
    ties: NDArray[np.uint64]
    places: NDArray[np.int64]


class Nearest(NamedTuple):
    """For each question the best documents: `scores` (Q, K), and `places` (Q, K), -1 where there
    are no more."""

    scores: Floats
    places: NDArray[np.int64]


def find_nearest(blocks: Iterable[Block], questions: Floats, count: int) -> Nearest:
    """The `count` documents with the highest products with each of `questions` (Q, D), both unit
    vectors; of equal ones the lowest tie comes first."""
    best = Best(len(questions), count)
    scan(blocks, questions, best)
    return best.nearest()


def scan(blocks: Iterable[Block], questions: Floats, best: "Best") -> None:
    """Add to `best` all documents that are among the best for `questions`."""
    count = best.count
    transposed = np.ascontiguousarray(questions.T)
    slack = 4 * questions.shape[1] * 2.0**-24  # of two sums of D products, each below |x| |y|
    for block in blocks if count and len(questions) else ():
        vectors = block.vectors.astype(np.float32)
        products = vectors @ transposed
        if block.alive is not None:
            products[~block.alive] = -np.inf
        floors = best.floors - slack
        is_near = products >= floors
        if len(vectors) > count and np.count_nonzero(is_near) > 4 * count * len(questions):
            own = np.partition(products, len(vectors) - count, axis=0)[len(vectors) - count]
            is_near = products >= np.maximum(floors, own - slack)
        if block.alive is not None:
            is_near[~block.alive] = False
        rows, columns = np.divmod(np.flatnonzero(is_near), len(questions))
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            scores[part] = score(vectors[rows[part]], questions[columns[part]])
        best.add(columns, scores, block.ties[rows], block.places[rows])


def score(documents: Floats, questions: Floats) -> Floats:
    """(N,): the products of documents (N, D) with a question each, or one for all, summed row by
    row."""
    products: Floats = (documents * questions).sum(axis=1, dtype=np.float32)
    return products


class Best:
    """The best `count` documents so far of each of so many questions. Those that come wait until
    they are many, for to sort them in is what costs."""

    def __init__(self, questions: int, count: int) -> None:
        self.count = count
        self._scores = np.full((questions, count), -np.inf, np.float32)
        self._places = np.full((questions, count), -1, np.int64)
        self._ties = np.zeros((questions, count), np.uint64)
        self._waiting: list[_Scored] = []

    @property
    def floors(self) -> Floats:
        """(Q,): what a document must score to be among them; or less, while others wait."""
        floors: Floats = self._scores[:, -1]
        return floors

    def nearest(self) -> Nearest:
        """What they are."""
        self._sort_in()
        return Nearest(self._scores, self._places)

    def add(
        self,
        columns: NDArray[np.int64],
        scores: Floats,
        ties: NDArray[np.uint64],
        places: NDArray[np.int64],
    ) -> None:
        """Documents, and the question that each of them is near to."""
        self._waiting.append(_Scored(columns, scores, ties, places))
        if sum(len(one.scores) for one in self._waiting) > self._scores.size // 2:
            self._sort_in()

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        before = self._places >= 0
        here = (np.nonzero(before)[0], self._scores[before], self._ties[before])
        parts = [_Scored(*here, self._places[before]), *self._waiting]
        self._waiting = []
        columns, scores, ties, places = map(np.concatenate, zip(*parts))
        order = np.lexsort((ties, -scores, columns))
        columns = columns[order]
        ranks = np.arange(len(columns)) - np.searchsorted(columns, columns)
        kept = ranks < self.count
        at, order = (columns[kept], ranks[kept]), order[kept]
        self._scores[at], self._places[at] = scores[order], places[order]
        self._ties[at] = ties[order]


class _Scored(NamedTuple):
    columns: NDArray[np.int64]
    scores: Floats
    ties: NDArray[np.uint64]
    places: NDArray[np.int64]
