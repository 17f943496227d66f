"""Hard negatives: documents of other rows that a question is close to, but need not be.

A document that scores almost as high as the relevant one may well be relevant, too, though nobody
said so; so those within `MARGIN` of it are passed over (NV-Retriever, arXiv:2407.15831).
"""

from dataclasses import replace

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
def mine_negatives(
    towers: Towers, table: EmbeddedTable, count: int, generator: torch.Generator
) -> Tensor:
    """(Q, count): for each question the closest documents of other rows, with contents that it does
    not have among its own, nor an equal question; -1 where there are no more."""
    known = (~table.shares.isnan()).nonzero()[:, 0]
    pool = known[torch.randperm(len(known), generator=generator)[:POOL]]
    vectors = torch.cat(
        [
            towers.document(*table.embeddings(table.documents[chunk]))
            for chunk in pool.split(CHUNK)  # type: ignore[no-untyped-call]
        ]
    )
    different, contents = torch.unique(table.contents(table.documents[pool]), return_inverse=True)
    same_questions, question_ids = _by_question(table)
    negatives = []
    for start in range(0, len(table.questions), CHUNK):
        indices = torch.arange(start, min(start + CHUNK, len(table.questions)))
        part = table.take(indices)
        questions = towers.question(*table.embeddings(part.questions))
        scores = questions @ vectors.T  # (CHUNK, POOL)
        scores[
            (scores > _score_ceilings(towers, part, questions)[:, None])
            | _held(same_questions.take(question_ids[indices]), different)[:, contents]
        ] = -2
        hardest = scores.topk(min(count, len(pool)), dim=1)
        negatives.append(torch.where(hardest.values > -2, pool[hardest.indices], -1))
    return torch.cat(negatives)


def _by_question(table: EmbeddedTable) -> tuple[EmbeddedTable, Tensor]:
    """Equal questions as one, with the documents of all; and (Q,) which one each question is."""
    different, question_ids = torch.unique(table.contents(table.questions), return_inverse=True)
    owner = question_ids[table.owner]
    order = owner.argsort(stable=True)
    merged = replace(
        table,
        questions=different[:, None].expand(-1, 2),
        documents=table.documents[order],
        counts=torch.bincount(owner),
        shares=table.shares[order],
        numbers=different,
    )
    return merged, question_ids


def _held(part: EmbeddedTable, contents: Tensor) -> Tensor:
    """(Q, C) bool: which of different `contents` (C,), ascending, the documents of a question have;
    they help it, or may help it, or are its negatives anyway."""
    own_contents = part.contents(part.documents)
    places = torch.searchsorted(contents, own_contents).clamp(max=len(contents) - 1)
    is_found = contents[places] == own_contents
    own = torch.zeros(len(part.questions), len(contents), dtype=torch.bool)
    own[part.owner[is_found], places[is_found]] = True
    return own


def _score_ceilings(towers: Towers, part: EmbeddedTable, questions: Tensor) -> Tensor:
    """(Q,): what a negative may score at most."""
    owner, relevant = part.owner, part.relevant
    documents = towers.document(*part.embeddings(part.documents[relevant]))
    scores = (questions[owner[relevant]] * documents).sum(dim=1)
    highest = torch.full((len(questions),), -1.0)
    return highest.scatter_reduce_(0, owner[relevant], scores, "amax") - MARGIN
