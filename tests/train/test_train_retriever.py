import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrag_batch.errors import InputError
from train.data import EmbeddedTable
from train.retriever import (
    RetrieverConfig,
    rank,
    split,
    train_epoch,
    train_retriever,
)
from train.towers import Towers, TowersConfig, load_towers

ABSENT_IMAGE = torch.tensor([0.0, 1.0])


def texts_only(
    questions: Tensor, documents: Tensor, owner: Tensor, relevant: Tensor
) -> EmbeddedTable:
    """A table whose questions (Q, D) and documents (N, D) have a text embedding only."""
    return EmbeddedTable(
        questions=F.pad(questions[:, None], (0, 0, 1, 0)),
        questions_present=ABSENT_IMAGE.expand(len(questions), 2),
        documents=F.pad(documents[:, None], (0, 0, 1, 0)),
        documents_present=ABSENT_IMAGE.expand(len(documents), 2),
        owner=owner,
        relevant=relevant,
    )


def separable(count: int) -> EmbeddedTable:
    """Questions with five documents each, of which the relevant one points up in dimension 0."""
    random = torch.Generator().manual_seed(0)
    relevant = torch.zeros(count, 5, dtype=torch.bool)
    relevant[torch.arange(count), torch.randint(5, (count,), generator=random)] = True
    relevant = relevant.flatten()
    documents = torch.randn(count * 5, 12, generator=random)
    documents[:, 0] = torch.where(relevant, 1.5, -1.5)
    questions = torch.randn(count, 12, generator=random)
    questions[:, 0] = 0
    owner = torch.arange(count).repeat_interleave(5)
    return texts_only(F.normalize(questions, dim=1), F.normalize(documents, dim=1), owner, relevant)


def at(*cosines: float) -> Tensor:
    """(N, 2): unit vectors with these cosines to (1, 0)."""
    return torch.tensor([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines])


def test_ranks_are_those_of_the_best_relevant_document() -> None:
    """Untrained towers pass a lone text embedding on, so the cosines are given by hand."""
    table = texts_only(
        torch.tensor([[1.0, 0.0]]).repeat(3, 1),
        at(0.9, 0.5, 0.1, 0.8, 0.9, 0.2, 0.3, 0.7, 0.7, 0.1),
        torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2]),
        torch.tensor([True, False, True, False, False, True, True, True, False, False]),
    )
    found = rank(Towers(TowersConfig(2, 4)), table)
    assert found.recall_at_1 == pytest.approx(2 / 3)  # ranks 1, 3, and 1 where two are equal
    assert found.mrr == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_a_split_is_disjoint_and_whole() -> None:
    table = separable(20)
    held_out, trained = split(table, 0.25)
    assert (len(held_out.questions), len(trained.questions)) == (5, 15)
    both = torch.cat([held_out.questions, trained.questions]).flatten(1)
    assert sorted(both.tolist()) == sorted(table.questions.flatten(1).tolist())
    assert len(held_out.documents) + len(trained.documents) == len(table.documents)


@pytest.mark.parametrize("held_out", [0.0, 0.01, 1.0])
def test_a_split_with_an_empty_side_is_refused(held_out: float) -> None:
    with pytest.raises(InputError, match="20 questions"):
        split(separable(20), held_out)


def test_training_beats_the_untrained_towers() -> None:
    torch.manual_seed(0)
    held_out, trained = split(separable(240), 0.25)
    towers = Towers(TowersConfig(12, 32))
    before = rank(towers, held_out)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    losses = [train_epoch(towers, trained, optimizer, schedule, 20) for _ in range(8)]
    after = rank(towers, held_out)
    assert before.recall_at_1 < 0.5
    assert after.recall_at_1 > 0.9
    assert after.mrr > before.mrr
    assert losses[-1] < losses[0]


def config(graphs: Path, table: Path, out: Path, *, batch_size: int = 8) -> RetrieverConfig:
    return RetrieverConfig(
        encoders=graphs,
        table=table,
        out=out,
        epochs=2,
        batch_size=batch_size,
        learning_rate=1e-3,
        hidden_size=8,
        held_out=0.3,
    )


def test_a_run_keeps_the_best_towers(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    model = train_retriever(config(tiny_retriever_dir, demo_table, tmp_path))
    assert model == tmp_path / "model"
    assert load_towers(model).config == TowersConfig(embedding_size=24, hidden_size=8)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    *epochs, best = lines
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    assert best["best_mrr"] == max(line["mrr"] for line in epochs)


def test_a_batch_larger_than_the_table_is_refused(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="batch_size"):
        train_retriever(config(tiny_retriever_dir, demo_table, tmp_path, batch_size=99))
