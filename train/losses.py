"""Contrastive losses on unit vectors."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(left: Tensor, right: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE where each of several true pairs counts alike (UniCL, arXiv:2204.03610).

    `left`, `right`: (B, D) unit vectors; `scale`: factor on the cosine; `same`: (B, B) bool, true
    where left i and right j mean the same, the diagonal included. Returns a scalar; its least value
    is 0 only where no two pairs mean the same.
    """
    logits = scale * left @ right.T  # (B, B)
    return (F.cross_entropy(logits, _shares(same)) + F.cross_entropy(logits.T, _shares(same.T))) / 2


def candidate_loss(
    questions: Tensor,
    documents: Tensor,
    owner: Tensor,
    relevant: Tensor,
    scale: Tensor,
    excluded: Tensor | None = None,
) -> Tensor:
    """How badly each question ranks its relevant documents among all documents of the batch.

    `questions`: (Q, D); `documents`: (N, D), all unit vectors; `owner`: (N,) the question each
    document is a candidate of, -1 for none; `relevant`: (N,) bool. The row's own other candidates
    and all other documents are the negatives, in two terms of equal weight: the first is what
    `predict` ranks, the second keeps scores comparable across rows. `excluded`: (Q, N) bool, what
    is no negative of a question, nor relevant to it. Returns a scalar.
    """
    logits, own_mask = _masked_logits(questions, documents, owner, scale, excluded)
    positive = own_mask & relevant[None, :]
    has_positive = positive.any(dim=1)
    own_logits = logits.masked_fill(~own_mask, float("-inf"))
    return (
        _multi_positive(own_logits[has_positive], positive[has_positive])
        + _multi_positive(logits[has_positive], positive[has_positive])
    ) / 2


def distillation_loss(
    questions: Tensor,
    documents: Tensor,
    owner: Tensor,
    shares: Tensor,
    scale: Tensor,
    excluded: Tensor | None = None,
) -> Tensor:
    """The same for documents that help more or less: how far each question's probabilities are from
    their `shares` (N,), which sum to 1 over its own; the cross-entropy, in the same two terms."""
    logits, own_mask = _masked_logits(questions, documents, owner, scale, excluded)
    target = shares[None, :] * own_mask  # (Q, N)
    own_logits = logits.masked_fill(~own_mask, float("-inf"))
    return (_soft_cross_entropy(own_logits, target) + _soft_cross_entropy(logits, target)) / 2


def _masked_logits(
    questions: Tensor, documents: Tensor, owner: Tensor, scale: Tensor, excluded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits (Q, N), -inf where excluded, and which documents are a question's own (Q, N)."""
    logits = scale * questions @ documents.T
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    own_mask = owner[None, :] == torch.arange(len(questions), device=owner.device)[:, None]
    return logits, own_mask


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    log_probabilities = F.log_softmax(logits.float(), dim=1).masked_fill(target == 0, 0.0)
    return -(target * log_probabilities).sum(dim=1).mean()


def _shares(same: Tensor) -> Tensor:
    """Each row's target distribution: equal shares for what means the same."""
    return same / same.sum(dim=1, keepdim=True)


def _multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """-log of the probability that falls on the positives, mean over the rows."""
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    return -log_probabilities.masked_fill(~positive, float("-inf")).logsumexp(dim=1).mean()
