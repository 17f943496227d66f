from pathlib import Path

import pytest
import torch

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import InputError
from mmrag_batch.io.images import ImageLoader
from mmrag_batch.io.table import read_rows
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.retrieval.embedder import Embedder
from mmrag_batch.retrieval.retriever import open_embedder
from train.data import EmbeddedTable, embed_table


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
    rows = list(read_rows(demo_table))
    asked = [r for r in rows if r.question is not None and r.question.relevant]
    table = embed_table(iter(rows), embedder)
    assert 0 < len(asked) < len(rows)
    assert table.questions.shape == (len(asked), 2, 24)
    assert set(table.owner.tolist()) == set(range(len(asked)))
    assert torch.equal(table.owner, table.owner.sort().values)
    relevant = torch.bincount(table.owner[table.relevant])
    assert relevant.tolist() == [1] * len(asked)


def test_what_is_absent_is_zero_and_what_is_present_a_unit_vector(
    embedder: Embedder, demo_table: Path
) -> None:
    table = embed_table(read_rows(demo_table), embedder)
    for vectors, present in (
        (table.questions, table.questions_present),
        (table.documents, table.documents_present),
    ):
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
    table = embed_table(rows, embedder)
    assert table.owner.tolist() == [0, 1, 1]
    assert table.relevant.tolist() == [True, True, False]
    (first,) = embedder.embed([rows[3]])
    assert first is not None
    torch.testing.assert_close(table.questions[1], torch.from_numpy(first.question.modalities))


def test_a_table_with_nothing_relevant_is_refused(embedder: Embedder) -> None:
    with pytest.raises(InputError, match="`relevant`"):
        embed_table([row(0, (Document("a", "Some.", None),))], embedder)


@pytest.fixture
def owned() -> EmbeddedTable:
    """Questions 0 to 3 with 2, 1, 3 and 2 documents; every embedding holds its owner's number."""
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3])
    return EmbeddedTable(
        questions=torch.arange(4.0)[:, None, None].expand(4, 2, 5),
        questions_present=torch.ones(4, 2),
        documents=owner[:, None, None].float().expand(8, 2, 5),
        documents_present=torch.ones(8, 2),
        owner=owner,
        relevant=torch.tensor([True, False, True, False, False, True, True, False]),
    )


def test_taken_questions_keep_their_documents(owned: EmbeddedTable) -> None:
    taken = owned.take(torch.tensor([2, 0, 3]))
    assert taken.questions[:, 0, 0].tolist() == [2, 0, 3]
    assert taken.owner.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert taken.documents[:, 0, 0].tolist() == [2, 2, 2, 0, 0, 3, 3]
    assert taken.relevant.tolist() == [False, False, True, True, False, True, False]


def test_taking_all_in_order_changes_nothing(owned: EmbeddedTable) -> None:
    taken = owned.take(torch.arange(4))
    assert torch.equal(taken.owner, owned.owner)
    assert torch.equal(taken.documents, owned.documents)
