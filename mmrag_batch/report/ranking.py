"""How well documents are ranked, by trec_eval's definitions, from the ranks of those that help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over `rows` questions; ranks are known up to `depth`. `recall` and `success` map k to
    recall@k and to the hit rate."""

    rows: int
    depth: int
    recall: dict[int, float]
    success: dict[int, float]
    mrr: float
    ndcg: float


def retrieval(ranks: Sequence[Sequence[int]], relevant: Sequence[int], depth: int) -> Retrieval:
    """Means over questions. For each: the ranks (from 1) of the relevant documents that were kept,
    in order, and how many documents are relevant."""
    top_ranks = [[rank for rank in question if rank <= depth] for question in ranks]
    first = np.array([question[0] if question else math.inf for question in top_ranks])
    depths = sorted({1, depth})
    gains = [ndcg(question, count, depth) for question, count in zip(top_ranks, relevant)]
    return Retrieval(
        rows=len(top_ranks),
        depth=depth,
        recall={
            k: float(np.mean([_recall(*question, k) for question in zip(top_ranks, relevant)]))
            for k in depths
        },
        success={k: float((first <= k).mean()) for k in depths},
        mrr=float((1 / first).mean()),
        ndcg=float(np.mean(gains)),
    )


def _recall(ranks: Sequence[int], relevant: int, k: int) -> float:
    return sum(rank <= k for rank in ranks) / relevant


def ndcg(ranks: Sequence[int], relevant: int, depth: int) -> float:
    """Discounted gain of documents that are relevant or not, as a share of the best possible."""
    ideal_ranks = range(1, min(relevant, depth) + 1)
    return _discounted(ranks) / _discounted(ideal_ranks)


def _discounted(ranks: Sequence[int]) -> float:
    return math.fsum(1 / math.log2(rank + 1) for rank in ranks)
