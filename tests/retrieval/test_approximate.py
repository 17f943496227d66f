"""An approximate index chooses among documents; their scores are exact."""

import sys
from io import BytesIO
from pathlib import Path

import faiss
import numpy as np
import pytest

from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.retrieval.approximate import (
    DEPTH,
    RECALL,
    ApproximateIndex,
    build_index,
    read_index,
)
from mmrag_batch.retrieval.corpus_manifest import Segment
from mmrag_batch.retrieval.corpus_segment import OpenSegment
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.search import Best, Nearest, find_nearest
from mmrag_batch.run.corpus_files import SegmentFiles, write_dead

SIZE, ROWS, SEGMENTS = 96, 1500, 3


def unit(count: int, seed: int) -> Floats:
    """Vectors in clusters, in which few dimensions say most, as embeddings are."""
    random, spread = np.random.default_rng(seed), (3 + np.arange(SIZE)) ** -0.5
    centres = np.random.default_rng(1).normal(size=(40, SIZE))
    vectors = (centres[random.integers(0, 40, count)] + random.normal(size=(count, SIZE))) * spread
    normed: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normed


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OpenSegment]:
    """Of 4,500 documents, of which every tenth in the first segment is dead."""
    directory = tmp_path_factory.mktemp("corpus")
    specs: list[Segment] = []
    for number in range(SEGMENTS):
        files = SegmentFiles(directory)
        for row, vector in enumerate(unit(ROWS, 10 + number).astype(np.float16)):
            name = f"{number}/{row}".encode().ljust(16, b".")
            files.add(name, name, b"{}\n", vector.tobytes())
        specs.append(files.close())
    specs[0] = write_dead(directory, specs[0], np.arange(ROWS) % 10 > 0)
    return {spec.name: OpenSegment(directory, spec) for spec in specs}


@pytest.fixture(scope="module")
def index_file(
    segments: dict[str, OpenSegment], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, float]:
    """An index of them, how many of its lists are looked through, and its recall."""
    stream = BytesIO()
    probes, recall = build_index(segments, SIZE, stream.write)
    file = tmp_path_factory.mktemp("index") / "one.faiss"
    file.write_bytes(stream.getvalue())
    return file, probes, recall


def open_index(
    index_file: tuple[Path, int, float],
    segments: dict[str, OpenSegment],
    without: str = "",
    **options: int,
) -> ApproximateIndex:
    there = {name: one for name, one in segments.items() if name != without}
    places = dict(zip(there, range(0, ROWS * SEGMENTS, ROWS)))
    covers = dict.fromkeys(segments, ROWS)
    file, probes, _ = index_file
    return ApproximateIndex(read_index(file), covers, there, places, probes=probes, **options)


def search(index: ApproximateIndex, questions: Floats, count: int) -> Nearest:
    best = Best(len(questions), count)
    index.add_best(questions, best)
    return best.nearest()


def exact(segments: dict[str, OpenSegment], questions: Floats, count: int) -> Nearest:
    blocks = [
        block
        for number, segment in enumerate(segments.values())
        for block in segment.blocks(SIZE, number * ROWS)
    ]
    return find_nearest(blocks, questions, count)


def test_it_finds_what_it_says_and_scores_it_as_the_exact_search_does(
    segments: dict[str, OpenSegment], index_file: tuple[Path, int, float]
) -> None:
    _, probes, recall = index_file
    index = open_index(index_file, segments)
    assert recall >= RECALL
    assert 1 <= probes < faiss.extract_index_ivf(index._index).nlist
    questions = unit(200, 3)
    found, right = search(index, questions, DEPTH), exact(segments, questions, DEPTH)
    shares = []
    for ours, scores, theirs, exactly in zip(
        found.places, found.scores, right.places, right.scores
    ):
        known = dict(zip(theirs.tolist(), exactly.tolist()))
        common = [(place, score) for place, score in zip(ours.tolist(), scores) if place in known]
        assert all(known[place] == score for place, score in common)
        assert list(scores) == sorted(scores, reverse=True)
        shares.append(len(common) / DEPTH)
    assert np.mean(shares) >= recall - 0.02
    assert 0 not in found.places % 10 + (found.places >= ROWS)  # those are dead


def test_neither_other_questions_nor_threads_change_what_is_found(
    segments: dict[str, OpenSegment], index_file: tuple[Path, int, float]
) -> None:
    questions = unit(40, 4)
    together = search(open_index(index_file, segments), questions, 10)
    index = open_index(index_file, segments, threads=1)
    for at in range(40):
        alone = search(index, questions[at : at + 1], 10)
        assert alone.places.tolist() == together.places[at : at + 1].tolist()
        assert alone.scores.tolist() == together.scores[at : at + 1].tolist()


def test_a_segment_that_is_gone_is_passed_over(
    segments: dict[str, OpenSegment], index_file: tuple[Path, int, float]
) -> None:
    gone = list(segments)[1]
    left = {name: one for name, one in segments.items() if name != gone}
    questions = unit(30, 5)
    found = search(open_index(index_file, segments, without=gone), questions, 5)
    right = exact(left, questions, 5)
    assert np.mean(found.places == right.places) > 0.9


def test_it_is_the_same_index_whenever_it_is_made(
    segments: dict[str, OpenSegment], index_file: tuple[Path, int, float]
) -> None:
    stream = BytesIO()
    assert build_index(segments, SIZE, stream.write) == index_file[1:]
    assert stream.getvalue() == index_file[0].read_bytes()


def test_no_question_finds_nothing(
    segments: dict[str, OpenSegment], index_file: tuple[Path, int, float]
) -> None:
    index = open_index(index_file, segments)
    assert search(index, unit(1, 6)[:0], 5).places.shape == (0, 5)
    assert search(index, unit(1, 6), 0).places.shape == (1, 0)


def test_another_file_and_no_faiss_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.faiss"
    file.write_bytes(b"no index")
    with pytest.raises(MissingError, match=r"a\.faiss cannot be read by faiss"):
        read_index(file)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UnavailableError, match=r"faiss is not installed.*pip install .*faiss-cpu"):
        read_index(file)
