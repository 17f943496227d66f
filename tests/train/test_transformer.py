import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrag_batch.train.transformer import Attention, Block


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_torch_under_the_same_names(causal: bool) -> None:
    ours, theirs = Attention(16, 2), nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    mask = torch.full((5, 5), float("-inf")).triu(1) if causal else None
    expected, _ = theirs(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(x, causal), expected)


def test_a_block_normalises_before_attention_and_before_the_mlp() -> None:
    block = Block(16, 2)
    x = torch.randn(2, 5, 16) * 10
    middle = x + block.attn(F.layer_norm(x, (16,), eps=1e-6), False)
    inner = F.gelu(block.mlp.fc1(F.layer_norm(middle, (16,), eps=1e-6)), approximate="none")
    torch.testing.assert_close(block(x, False), middle + block.mlp.fc2(inner))
