import pytest
import torch

from mmrag_batch.train.examples import needed_logits, weighted_loss


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]], 3),
        ([[0, 0.1, 0.1, 1, 1], [0.1, 0.1, 1, 1, 1]], 5),
        ([[0, 1, 1, 1, 1]], 5),
        ([[0, 0, 0, 0, 1]], 2),
    ],
)
def test_logits_that_carry_no_loss_are_left_out(weights: list[list[float]], kept: int) -> None:
    shares = torch.tensor(weights)
    assert needed_logits(shares) == kept
    torch.manual_seed(0)
    logits = torch.randn(*shares.shape, 7)
    labels = torch.randint(7, shares.shape)
    whole = weighted_loss(logits, labels, shares)
    part = weighted_loss(logits[:, -kept:], labels[:, -kept:], shares[:, -kept:])
    torch.testing.assert_close(part, whole)
