"""How well towers rank each question's own documents, and how sure that is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrag_batch.train.data import EmbeddedTable
from mmrag_batch.train.towers import Towers

CHUNK = 512
"""Questions ranked at once."""
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well the relevant documents of a set of questions are ranked."""

    recall_at_1: float
    mrr: float


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of means, and its 95% interval."""

    value: float
    low: float
    high: float


def vectors(towers: Towers, table: EmbeddedTable) -> tuple[Tensor, Tensor]:
    """Unit vectors of all questions (Q, D) and documents (N, D)."""
    return (
        towers.question(*table.embeddings(table.questions)),
        towers.document(*table.embeddings(table.documents)),
    )


@torch.inference_mode()
def ranks(towers: Towers, table: EmbeddedTable) -> Tensor:
    """(Q,): the rank, from 1, of each question's best relevant document among its own of which
    something is known."""
    return torch.cat([_ranks(towers, chunk) for chunk in _chunks(table)])


def _chunks(table: EmbeddedTable) -> Iterator[EmbeddedTable]:
    for start in range(0, len(table.questions), CHUNK):
        yield table.take(torch.arange(start, min(start + CHUNK, len(table.questions))))


def _ranks(towers: Towers, table: EmbeddedTable) -> Tensor:
    questions, documents = vectors(towers, table)
    owner, relevant = table.owner, table.relevant
    scores = (questions[owner] * documents).sum(dim=1)  # (N,)
    best = torch.full((len(questions),), float("-inf"))
    best.scatter_reduce_(0, owner[relevant], scores[relevant], "amax")
    above = ((scores > best[owner]) & ~table.shares.isnan()).long()
    return 1 + torch.zeros(len(questions), dtype=torch.long).scatter_add_(0, owner, above)


def summary(ranks: Tensor) -> Ranking:
    """Means over questions, of their ranks (Q,)."""
    return Ranking(recall_at_1=(ranks == 1).float().mean().item(), mrr=(1 / ranks).mean().item())


def rank(towers: Towers, table: EmbeddedTable) -> Ranking:
    """Rank each question's own documents; the best relevant one counts."""
    return summary(ranks(towers, table))


def recall_gain(before: Tensor, after: Tensor, groups: Tensor | None = None) -> Gain:
    """What recall@1 gained on the same questions, from both ranks (Q,) of each; its interval is the
    percentile bootstrap over questions, or over `groups` (Q,) of questions that repeat others and
    say nothing on their own."""
    gains = (after == 1).float() - (before == 1).float()
    if groups is None:
        groups = torch.arange(len(gains))
    _, groups = torch.unique(groups, return_inverse=True)
    sums, sizes = (
        torch.zeros(len(groups.unique())).scatter_add_(0, groups, values)
        for values in (gains, torch.ones_like(gains))
    )
    generator = torch.Generator().manual_seed(0)
    samples = [
        torch.randint(len(sums), (len(sums),), generator=generator) for _ in range(RESAMPLES)
    ]
    means = torch.stack([sums[sample].sum() / sizes[sample].sum() for sample in samples])
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Gain(gains.mean().item(), low, high)
