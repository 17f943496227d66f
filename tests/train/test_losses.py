import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrag_batch.train.losses import candidate_loss, contrastive_loss, distillation_loss

SCALE = torch.tensor(10.0)


def test_matching_pairs_cost_less_than_swapped_ones() -> None:
    left = torch.eye(4)
    same = torch.eye(4, dtype=torch.bool)
    matched = contrastive_loss(left, left, SCALE, same)
    swapped = contrastive_loss(left, left.flip(0), SCALE, same)
    assert matched < 0.01
    assert swapped > 5


def test_with_one_true_pair_each_it_is_the_loss_of_clip() -> None:
    torch.manual_seed(0)
    left, right = F.normalize(torch.randn(2, 5, 8), dim=-1)
    logits, targets = SCALE * left @ right.T, torch.arange(5)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    found = contrastive_loss(left, right, SCALE, torch.eye(5, dtype=torch.bool))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_true_pair_is_drawn_close_alike() -> None:
    alike = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    one_apart = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    same = alike @ alike.T > 0.5
    least = 2 / 3 * math.log(2)  # two rows share their probability between two true pairs
    assert contrastive_loss(alike, alike, SCALE, same).item() == pytest.approx(least, abs=0.01)
    assert contrastive_loss(alike, one_apart, SCALE, same) > least + 0.5


def test_a_relevant_document_ranked_first_costs_little() -> None:
    questions = torch.eye(2)
    documents = torch.eye(2)[[0, 1, 1, 0]]
    owner = torch.tensor([0, 0, 1, 1])
    first = candidate_loss(
        questions, documents, owner, torch.tensor([True, False, True, False]), SCALE
    )
    last = candidate_loss(
        questions, documents, owner, torch.tensor([False, True, False, True]), SCALE
    )
    assert first < 0.5
    assert last > 5


def test_a_question_without_a_relevant_document_is_left_out() -> None:
    torch.manual_seed(0)
    questions, others = torch.eye(3)[:2], F.normalize(torch.randn(2, 3), dim=-1)
    documents = torch.cat([torch.eye(3)[:2], others])
    owner = torch.tensor([0, 0, 1, 1])
    relevant = torch.tensor([True, False, False, False])
    both = candidate_loss(questions, documents, owner, relevant, SCALE)
    alone = candidate_loss(questions[:1], documents, owner, relevant, SCALE)
    assert both.isfinite()
    assert both.item() == pytest.approx(alone.item())


def test_gradients_are_finite() -> None:
    questions = torch.eye(2, requires_grad=True)
    owner = torch.tensor([0, 0, 1])
    relevant = torch.tensor([True, False, True])
    loss = candidate_loss(questions, torch.eye(2)[[0, 1, 1]], owner, relevant, SCALE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert questions.grad is not None
    assert questions.grad.isfinite().all()
    assert questions.grad.abs().sum() > 0


def test_shares_that_the_scores_have_cost_least() -> None:
    questions, documents = torch.eye(2)[:1], torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    owner = torch.tensor([0, 0, -1])
    scores = (SCALE * questions @ documents[:2].T).softmax(dim=1)[0]

    def cost(*shares: float) -> float:
        found = distillation_loss(
            questions, documents, owner, torch.tensor([*shares, 0.0]), SCALE
        ).item()
        entropy = -sum(share * math.log(share) for share in shares if share)
        return found - entropy

    least = cost(*scores.tolist())
    assert 0 <= least < 0.01  # only the document of no question takes a little
    assert cost(0.5, 0.5) > least
    assert cost(0.0, 1.0) > least


@pytest.mark.parametrize("loss", [candidate_loss, distillation_loss])
def test_what_is_excluded_costs_what_its_absence_does(loss: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    questions, documents = (F.normalize(torch.randn(n, 4), dim=-1) for n in (2, 7))
    owner, shares = torch.tensor([0, 0, 0, 1, 1, -1, -1]), torch.tensor([1.0, 0, 0, 1, 0, 0, 0])
    excluded = torch.zeros(2, 7, dtype=torch.bool)
    excluded[:, [1, 5]] = True
    kept = [0, 2, 3, 4, 6]
    relevant = shares if loss is distillation_loss else shares > 0
    found = loss(questions, documents, owner, relevant, SCALE, excluded)
    expected = loss(questions, documents[kept], owner[kept], relevant[kept], SCALE)
    assert found.item() == pytest.approx(expected.item())
    assert found < loss(questions, documents, owner, relevant, SCALE)


def test_a_single_share_costs_what_a_relevant_document_does() -> None:
    torch.manual_seed(0)
    questions, documents = (F.normalize(torch.randn(n, 4), dim=-1) for n in (2, 5))
    owner, relevant = (
        torch.tensor([0, 0, 1, 1, -1]),
        torch.tensor([True, False, False, True, False]),
    )
    soft = distillation_loss(questions, documents, owner, relevant.float(), SCALE)
    hard = candidate_loss(questions, documents, owner, relevant, SCALE)
    assert soft.item() == pytest.approx(hard.item(), rel=1e-5)
