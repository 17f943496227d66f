"""Hard negatives: documents of other rows that a question is close to, but need not be.

A document that scores almost as high as the relevant one may well be relevant, too, though nobody
said so; so those within `MARGIN` of it are passed over (NV-Retriever, arXiv:2407.15831).
"""

import torch
from torch import Tensor

from mmrag_batch.train.data import EmbeddedTable
from mmrag_batch.train.ranking import CHUNK
from mmrag_batch.train.towers import Towers

MARGIN = 0.05
"""Of cosines."""
POOL = 65_536
"""Documents, at random, that negatives are drawn from."""


@torch.inference_mode()
def mine(towers: Towers, table: EmbeddedTable, count: int, generator: torch.Generator) -> Tensor:
    """(Q, count): for each question the closest documents of other rows, -1 where there are no
    more."""
    pool = torch.randperm(len(table.documents), generator=generator)[:POOL]
    vectors = torch.cat(
        [
            towers.document(*table.embeddings(table.documents[chunk]))
            for chunk in pool.split(CHUNK)  # type: ignore[no-untyped-call]
        ]
    )
    owner = table.owner[pool]
    found = []
    for start in range(0, len(table.questions), CHUNK):
        chosen = torch.arange(start, min(start + CHUNK, len(table.questions)))
        part = table.take(chosen)
        asked = towers.question(*table.embeddings(part.questions))
        scores = asked @ vectors.T  # (CHUNK, POOL)
        scores[(scores > _highest(towers, part, asked)[:, None]) | (owner == chosen[:, None])] = -2
        best = scores.topk(min(count, len(pool)), dim=1)
        found.append(torch.where(best.values > -2, pool[best.indices], -1))
    return torch.cat(found)


def _highest(towers: Towers, part: EmbeddedTable, asked: Tensor) -> Tensor:
    """(Q,): what a negative may score at most."""
    owner, relevant = part.owner, part.relevant
    documents = towers.document(*part.embeddings(part.documents[relevant]))
    scores = (asked[owner[relevant]] * documents).sum(dim=1)
    best = torch.full((len(asked),), -1.0)
    return best.scatter_reduce_(0, owner[relevant], scores, "amax") - MARGIN
