"""Train the retriever's towers on the frozen embeddings of a table of questions.

    python -m train.retriever train/configs/demo_retriever.yaml

Needs `relevant` in the table and the encoders as ONNX graphs (`mmrag-batch export encoders`), so
that training sees the very embeddings that `predict` computes. They are computed once. Reports
recall@1 and MRR on held-out questions against the untrained towers, which are zero-shot ImageBind,
keeps the best epoch, writes `model/` and the files of `run.py`.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import InputError
from mmrag_batch.io.images import ImageLoader
from mmrag_batch.io.table import read_rows
from mmrag_batch.retrieval.retriever import open_embedder
from train.config import load_config
from train.data import EmbeddedTable, embed_table
from train.losses import candidate_loss
from train.run import Run, log_to_stderr
from train.towers import Towers, TowersConfig, save_towers


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """Settings of one training run of the towers."""

    encoders: Path
    """A folder of exported encoders."""
    table: Path
    out: Path
    epochs: int
    batch_size: int
    """Questions a step."""
    learning_rate: float
    hidden_size: int
    held_out: float = 0.1
    """Share of the questions that choose the best epoch."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well the relevant documents of a set of questions are ranked."""

    recall_at_1: float
    mrr: float


def train_retriever(config: RetrieverConfig) -> Path:
    """Train as configured; returns the folder of the best towers."""
    run = Run(config.out, config, seed=config.seed, inputs=[config.table])
    spec = read_retriever_spec(config.encoders)
    images = ImageLoader(config.table.parent)
    embedder = open_embedder(config.encoders, spec, images, device="cpu")
    table = embed_table(read_rows(config.table), embedder)
    held_out, trained = split(table, config.held_out)
    if len(trained.questions) < config.batch_size:
        raise InputError(
            f"{config.table}: {len(trained.questions)} questions to train on fill no batch of "
            f"{config.batch_size}; give more rows or a smaller `batch_size`."
        )
    towers = Towers(TowersConfig(spec.embedding_size, config.hidden_size))
    best = rank(towers, held_out)
    run.report(
        epoch=0, questions=len(trained.questions), recall_at_1=best.recall_at_1, mrr=best.mrr
    )

    kept = deepcopy(towers.state_dict())
    steps = config.epochs * (len(trained.questions) // config.batch_size)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=0.1
    )
    for epoch in range(1, config.epochs + 1):
        loss = train_epoch(towers.train(), trained, optimizer, schedule, config.batch_size)
        ranking = rank(towers.eval(), held_out)
        run.report(epoch=epoch, loss=loss, recall_at_1=ranking.recall_at_1, mrr=ranking.mrr)
        if ranking.mrr > best.mrr:
            best, kept = ranking, deepcopy(towers.state_dict())
    towers.load_state_dict(kept)
    save_towers(towers, config.out / "model")
    run.report(best_recall_at_1=best.recall_at_1, best_mrr=best.mrr)
    return config.out / "model"


def split(table: EmbeddedTable, held_out: float) -> tuple[EmbeddedTable, EmbeddedTable]:
    """A random share of the questions, and the rest."""
    count = round(len(table.questions) * held_out)
    if not 0 < count < len(table.questions):
        raise InputError(
            f"{len(table.questions)} questions with relevant documents are too few to train on."
        )
    order = torch.randperm(len(table.questions))
    return table.take(order[:count]), table.take(order[count:])


def train_epoch(
    towers: Towers,
    table: EmbeddedTable,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch_size: int,
) -> float:
    """One pass over the questions in a new order; returns the mean loss."""
    losses = []
    batches = torch.randperm(len(table.questions)).split(batch_size)  # type: ignore[no-untyped-call]
    for chosen in batches:
        if len(chosen) < batch_size:
            break  # what is left over comes up in another epoch
        batch = table.take(chosen)
        questions, documents = vectors(towers, batch)
        loss = candidate_loss(questions, documents, batch.owner, batch.relevant, towers.temperature)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def vectors(towers: Towers, table: EmbeddedTable) -> tuple[Tensor, Tensor]:
    """Unit vectors of all questions (Q, D) and documents (N, D)."""
    return (
        towers.question(table.questions, table.questions_present),
        towers.document(table.documents, table.documents_present),
    )


@torch.inference_mode()
def rank(towers: Towers, table: EmbeddedTable) -> Ranking:
    """Rank each question's own documents; the best relevant one counts."""
    questions, documents = vectors(towers, table)
    scores = (questions[table.owner] * documents).sum(dim=1)  # (N,)
    best = torch.full((len(questions),), float("-inf"))
    best.scatter_reduce_(0, table.owner[table.relevant], scores[table.relevant], "amax")
    above = (scores > best[table.owner]).long()
    ranks = 1 + torch.zeros(len(questions), dtype=torch.long).scatter_add_(0, table.owner, above)
    return Ranking(recall_at_1=(ranks == 1).float().mean().item(), mrr=(1 / ranks).mean().item())


def main(config: Annotated[Path, typer.Argument(help="A YAML file, see train/configs.")]) -> None:
    """Train the retriever's towers as CONFIG says."""
    log_to_stderr()
    typer.echo(train_retriever(load_config(config, RetrieverConfig)))


if __name__ == "__main__":
    typer.run(main)
