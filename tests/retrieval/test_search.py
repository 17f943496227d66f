from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.search import Block, find_nearest, score

SIZE = 24


def unit(vectors: NDArray[np.float64]) -> Floats:
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def documents() -> NDArray[np.float16]:
    """900 documents, of which many are equal: 300 different ones."""
    random = np.random.default_rng(3)
    different = unit(random.normal(size=(300, SIZE)))
    return different[random.integers(0, 300, 900)].astype(np.float16)


@pytest.fixture(scope="module")
def ties() -> NDArray[np.uint64]:
    return np.random.default_rng(4).permutation(900).astype(np.uint64)


@pytest.fixture(scope="module")
def questions() -> Floats:
    return unit(np.random.default_rng(5).normal(size=(17, SIZE)))


def blocks(
    documents: NDArray[np.float16],
    ties: NDArray[np.uint64],
    size: int,
    alive: NDArray[np.bool_] | None = None,
) -> Iterator[Block]:
    for start in range(0, len(documents), size):
        part = slice(start, start + size)
        some = None if alive is None else alive[part]
        yield Block(documents[part], some, ties[part], np.arange(len(documents))[part])


def ranked(
    documents: NDArray[np.float16],
    ties: NDArray[np.uint64],
    question: Floats,
    alive: NDArray[np.bool_] | None = None,
) -> list[tuple[float, int]]:
    """Every document that counts, best first, by the definition."""
    scores = score(documents.astype(np.float32), question)
    order = np.lexsort((ties, -scores))
    return [(float(scores[at]), int(at)) for at in order if alive is None or alive[at]]


@pytest.mark.parametrize("count", [1, 3, 100, 900, 1000])
@pytest.mark.parametrize("size", [1, 7, 64, 899, 5000])
def test_the_best_are_found_in_blocks_of_any_size(
    documents: NDArray[np.float16],
    ties: NDArray[np.uint64],
    questions: Floats,
    count: int,
    size: int,
) -> None:
    found = find_nearest(blocks(documents, ties, size), questions, count)
    for question, scores, places in zip(questions, found.scores, found.places):
        expected = ranked(documents, ties, question)[:count]
        assert list(zip(scores.tolist(), places.tolist()))[: len(expected)] == expected
        assert set(places[len(expected) :].tolist()) <= {-1}


def test_a_score_is_the_same_whatever_else_is_asked(
    documents: NDArray[np.float16], ties: NDArray[np.uint64], questions: Floats
) -> None:
    together = find_nearest(blocks(documents, ties, 64), questions, 50)
    for number, question in enumerate(questions):
        alone = find_nearest(blocks(documents, ties, 100), question[None], 50)
        assert alone.scores[0].tobytes() == together.scores[number].tobytes()
        assert alone.places[0].tolist() == together.places[number].tolist()


def test_what_is_dead_is_not_found(
    documents: NDArray[np.float16], ties: NDArray[np.uint64], questions: Floats
) -> None:
    alive = np.random.default_rng(6).random(900) < 0.02  # blocks without one among them
    found = find_nearest(blocks(documents, ties, 16, alive), questions, 30)
    for question, places in zip(questions, found.places):
        expected = [place for _, place in ranked(documents, ties, question, alive)]
        assert places.tolist() == (expected + [-1] * 30)[:30]


def test_documents_that_are_all_equal_come_in_the_order_of_their_ties() -> None:
    documents = np.repeat(unit(np.ones((1, SIZE))).astype(np.float16), 5000, axis=0)
    ties = np.random.default_rng(7).permutation(5000).astype(np.uint64)
    found = find_nearest(blocks(documents, ties, 512), unit(np.ones((2, SIZE))), 10)
    assert [ties[places].tolist() for places in found.places] == [list(range(10))] * 2


def test_nothing_is_found_where_there_is_nothing(questions: Floats) -> None:
    assert find_nearest([], questions, 3).places.tolist() == [[-1] * 3] * 17
    empty = np.empty((0, SIZE), np.float32)
    assert find_nearest([], empty, 3).places.shape == (0, 3)
