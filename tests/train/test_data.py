import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import InputError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.retrieval.embedder import Embedder
from mmrag_batch.retrieval.retriever import open_embedder
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.data import EmbeddedTable, embed_table
from mmrag_batch.train.supervision import by_relevant


@pytest.fixture(scope="module")
def embedder(tiny_retriever_dir: Path, demo_table: Path) -> Embedder:
    images = ImageLoader(demo_table.parent)
    spec = read_retriever_spec(tiny_retriever_dir)
    return open_embedder(tiny_retriever_dir, spec, images, device="cpu", threads=1)


def row(number: int, documents: tuple[Document, ...], *relevant: str) -> Row:
    question = Question(f"Question {number}?", None, (), documents, None, frozenset(relevant))
    return Row(number, number + 2, str(number), {}, question)


def test_questions_with_a_relevant_document_are_embedded(
    embedder: Embedder, demo_table: Path
) -> None:
    rows = list(read_labelled_rows(demo_table))
    asked = [r for r in rows if r.question is not None and r.question.relevant]
    table = embed_table(iter(rows), embedder, by_relevant)
    assert 0 < len(asked) < len(rows)
    assert table.embeddings(table.questions)[0].shape == (len(asked), 2, 24)
    assert set(table.owner.tolist()) == set(range(len(asked)))
    assert torch.equal(table.owner, table.owner.sort().values)
    relevant = torch.bincount(table.owner[table.relevant])
    assert relevant.tolist() == [1] * len(asked)


def test_what_is_absent_is_zero_and_what_is_present_a_unit_vector(
    embedder: Embedder, demo_table: Path
) -> None:
    table = embed_table(read_labelled_rows(demo_table), embedder, by_relevant)
    for vectors, present in map(table.embeddings, (table.questions, table.documents)):
        torch.testing.assert_close(vectors.norm(dim=-1), present, atol=1e-4, rtol=0)
        assert set(map(tuple, present.tolist())) >= {(1, 1), (0, 1)}


def test_what_cannot_be_read_is_left_out(embedder: Embedder) -> None:
    right, lost = Document("a", "Right.", None), Document("b", "Lost.", "lost.jpg")
    rows = [
        row(0, (lost, right), "a"),
        row(1, (right, lost), "b"),  # nothing relevant is left
        row(2, (right,)),
        row(3, (right, Document("c", "Wrong.", None)), "a"),
    ]
    table = embed_table(rows, embedder, by_relevant)
    assert table.owner.tolist() == [0, 1, 1]
    assert table.relevant.tolist() == [True, True, False]
    (first,) = embedder.embed([rows[3]])
    assert first is not None
    second, _ = table.embeddings(table.questions[1:])
    torch.testing.assert_close(second[0], torch.from_numpy(first.question.modalities))


def test_equal_contents_share_a_vector(embedder: Embedder) -> None:
    shared = Document("a", "Right.", None)
    rows = [row(n, (shared, Document("b", f"{n}", None)), "a") for n in range(5)]
    table = embed_table(rows, embedder, by_relevant)
    assert table.vectors.shape == (1 + 5 + 1 + 5, 24)  # zeros, questions, the shared one, others
    assert len(set(table.documents[::2, 1].tolist())) == 1


def test_documents_of_which_nothing_is_known_are_negatives_of_none(embedder: Embedder) -> None:
    documents = tuple(Document(name, f"{name}.", None) for name in "abc")
    helps = [{"a": math.nan, "c": 2.0}, {"a": 1.0}]
    rows = [row(n, documents) for n in range(2)]
    table = embed_table(rows, embedder, lambda one: helps[one.number])
    torch.testing.assert_close(
        table.shares, torch.tensor([math.nan, 0, 1, 1, 0, 0]), equal_nan=True
    )
    assert table.relevant.tolist() == [False, False, True, True, False, False]
    first, second = table.excluded.tolist()
    assert first == [True, False, False, True, False, True]  # a may help it, and c does
    assert second == [True, False, False, False, False, False]


def test_what_helps_a_question_is_no_negative_of_an_equal_one(embedder: Embedder) -> None:
    documents = [(Document("0", f"{n}.", None), Document("1", f"-{n}.", None)) for n in range(2)]
    question = Question("Equal?", None, (), (), None, frozenset({"0"}))
    rows = [
        Row(n, n + 2, str(n), {}, replace(question, documents=items))
        for n, items in enumerate(documents)
    ]
    table = embed_table([*rows, row(2, documents[0], "1")], embedder, by_relevant)
    assert table.excluded.tolist() == [
        [False, False, True, False, True, False],
        [True, False, False, False, True, False],
        [False, True, False, False, False, False],
    ]
    with_more = table.with_documents(table.documents[:2])
    assert with_more.excluded[:, 6:].tolist() == [[True, False], [True, False], [False, True]]
    assert with_more.owner.tolist() == [0, 0, 1, 1, 2, 2, -1, -1]


def test_documents_that_cannot_be_read_leave_their_share_to_others(embedder: Embedder) -> None:
    documents = (
        Document("a", "Right.", None),
        Document("b", "Lost.", "lost.jpg"),
        Document("c", "Good.", None),
    )
    shares = {"a": 0.3, "b": 0.6, "c": 0.1}
    table = embed_table([row(0, documents)], embedder, lambda _: shares)
    torch.testing.assert_close(table.shares, torch.tensor([0.75, 0.25]))
    assert table.relevant.tolist() == [True, False]


def test_a_table_with_nothing_relevant_is_refused(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="`relevant`"):
        embed_table([row(0, (Document("a", "Some.", None),))], embedder, by_relevant)


@pytest.fixture
def owned() -> EmbeddedTable:
    """Questions 0 to 3 with 2, 1, 3 and 2 documents; every embedding holds its owner's number."""
    counts = torch.tensor([2, 1, 3, 2])
    owner = torch.repeat_interleave(torch.arange(4), counts)
    return EmbeddedTable(
        vectors=np.zeros((5, 2), np.float32),
        questions=torch.arange(4)[:, None].expand(4, 2),
        documents=owner[:, None].expand(8, 2),
        counts=counts,
        shares=torch.tensor([1, 0, 1, 0, 0, 1, 1, 0.0]),
        numbers=torch.tensor([0, 1, 4, 5]),
    )


def test_taken_questions_keep_their_documents(owned: EmbeddedTable) -> None:
    taken = owned.take(torch.tensor([2, 0, 3]))
    assert taken.questions[:, 0].tolist() == [2, 0, 3]
    assert taken.numbers.tolist() == [4, 0, 5]
    assert taken.owner.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert taken.documents[:, 0].tolist() == [2, 2, 2, 0, 0, 3, 3]
    assert taken.relevant.tolist() == [False, False, True, True, False, True, False]


def test_taking_all_in_order_changes_nothing(owned: EmbeddedTable) -> None:
    taken = owned.take(torch.arange(4))
    assert torch.equal(taken.owner, owned.owner)
    assert torch.equal(taken.documents, owned.documents)
