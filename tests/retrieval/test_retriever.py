from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import RowError
from mmrag_batch.records import Document, Problem, Question, Row
from mmrag_batch.retrieval.retriever import Retriever, open_retriever
from mmrag_batch.stages import Page

COINS = ["the ball costs 3 coins", "a red cube", "cube", "what?", "blue.png", "a red cube"]


class Pictures:
    """One-coloured pictures by name; `missing.png` is not there, `torn.png` cannot be decoded."""

    def digest(self, source: str) -> str:
        if source == "missing.png":
            raise RowError("image_missing", f"{source} is missing.")
        return source

    def pages(self, source: str) -> tuple[Page, ...]:
        return ()

    def load(self, source: str) -> Image.Image:
        if source == "torn.png":
            raise RowError("image_broken", f"{source} is torn.")
        return Image.new("RGB", (48, 40), Path(source).stem)


def make_row(text: str, documents: Iterable[str], *, image: str | None = None) -> Row:
    """Documents are texts, or pictures where they end in `.png`; ids are positions."""
    found = tuple(
        Document(str(position), None, item)
        if item.endswith(".png")
        else Document(str(position), item, None)
        for position, item in enumerate(documents)
    )
    question = Question(text, image, (), found, label=None, relevant=None)
    return Row(number=0, line=2, id="0", cells={}, question=question)


def retriever_of(directory: Path, top_k: int = 3) -> Retriever:
    spec = read_retriever_spec(directory)
    return open_retriever(directory, spec, Pictures(), top_k=top_k, device="cpu", threads=1)


@pytest.fixture(scope="module")
def retriever(tiny_retriever_dir: Path) -> Retriever:
    return retriever_of(tiny_retriever_dir)


def kept(row: Row) -> list[str]:
    return [evidence.document.id for evidence in row.evidence]


def test_the_best_documents_are_kept_best_first(tiny_retriever_dir: Path) -> None:
    (everything,) = retriever_of(tiny_retriever_dir, 10)([make_row("a red cube", COINS)])
    (best,) = retriever_of(tiny_retriever_dir, 3)([make_row("a red cube", COINS)])
    scores = [evidence.score for evidence in everything.evidence]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    assert kept(best) == kept(everything)[:3]


def test_of_equal_documents_the_earlier_comes_first(retriever: Retriever) -> None:
    (row,) = retriever([make_row("a red cube", COINS)])
    assert kept(row)[:2] == ["1", "5"]  # both are the question itself
    assert row.evidence[0].score == row.evidence[1].score


def test_a_score_is_the_cosine_times_the_temperature(
    retriever: Retriever, tiny_retriever_dir: Path
) -> None:
    (row,) = retriever([make_row("a red cube", ["a red cube"])])
    temperature = read_retriever_spec(tiny_retriever_dir).temperature
    assert temperature == pytest.approx(1 / 0.07)
    assert row.evidence[0].score == pytest.approx(temperature, rel=1e-4)


def test_a_row_with_fewer_documents_than_are_asked_for_keeps_all(retriever: Retriever) -> None:
    (row,) = retriever([make_row("a red cube", ["cube", "blue.png"])])
    assert sorted(kept(row)) == ["0", "1"]


def test_f01_a_row_without_documents_has_no_evidence(retriever: Retriever) -> None:
    empty, full = retriever([make_row("what?", []), make_row("what?", ["cube"])])
    assert (empty.evidence, empty.error, empty.problems) == ((), None, [])
    assert kept(full) == ["0"]


@pytest.mark.parametrize(
    ("source", "code"), [("missing.png", "image_missing"), ("torn.png", "image_broken")]
)
def test_a_broken_document_is_left_out_and_its_row_kept(
    retriever: Retriever, source: str, code: str
) -> None:
    (row,) = retriever([make_row("what?", ["cube", source, "blue.png"])])
    assert sorted(kept(row)) == ["0", "2"]
    assert row.error is None
    assert [problem.code for problem in row.problems] == [code]


def test_a_row_whose_documents_are_all_broken_is_kept_without_evidence(
    retriever: Retriever,
) -> None:
    broken, other = retriever(
        [make_row("what?", ["torn.png", "missing.png"]), make_row("cube", ["a red cube"])]
    )
    assert (broken.evidence, broken.error) == ((), None)
    assert {problem.code for problem in broken.problems} == {"image_broken", "image_missing"}
    assert kept(other) == ["0"]


def test_a_broken_question_image_is_the_error_of_its_row_alone(retriever: Retriever) -> None:
    rows = [
        make_row("what?", ["cube"], image="torn.png"),
        make_row("what?", ["cube"], image="red.png"),
    ]
    broken, other = retriever(rows)
    assert broken.error is not None
    assert broken.error.code == "image_broken"
    assert broken.evidence == ()
    assert other.error is None
    assert kept(other) == ["0"]


def test_rows_with_errors_pass_in_their_place(retriever: Retriever) -> None:
    rows = [make_row("what?", ["cube", "blue.png"]) for _ in range(2 * retriever.window + 3)]
    problem = Problem("bad_documents", "no list")
    for row in rows[::3]:
        row.error = problem
        row.question = None
    found = list(retriever(rows))
    assert all(out is row for out, row in zip(found, rows, strict=True))
    assert all((row.error, row.evidence) == (problem, ()) for row in rows[::3])
    assert all(len(row.evidence) == 2 for row in rows[1::3])


def test_evidence_does_not_depend_on_the_rows_beside_it(retriever: Retriever) -> None:
    texts = ["what?", "a red cube", "the ball costs"]
    together = [row.evidence for row in retriever([make_row(text, COINS) for text in texts])]
    alone = [next(retriever([make_row(text, COINS)])).evidence for text in texts]
    for ours, theirs in zip(together, alone, strict=True):
        assert [item.document for item in ours] == [item.document for item in theirs]
        assert [i.score for i in ours] == pytest.approx([i.score for i in theirs], abs=1e-3)


def test_no_more_than_a_window_of_rows_is_taken_ahead(retriever: Retriever) -> None:
    taken = 0

    def source() -> Iterator[Row]:
        nonlocal taken
        while True:
            taken += 1
            yield make_row("what?", ["cube"])

    next(retriever(source()))
    assert taken == retriever.window
