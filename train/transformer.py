"""The pre-norm transformer that both of ImageBind's encoders are built on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6
"""Of every LayerNorm, as published."""


class Attention(nn.Module):
    """Multi-head self-attention, with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )  # each (B, H, T, W / H)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm_1 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)
        self.norm_2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.norm_1(x), causal)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class Trunk(nn.Module):
    """The blocks of one encoder; images pass a LayerNorm before them, texts do not."""

    def __init__(self, width: int, blocks: int, heads: int, *, norm_first: bool) -> None:
        super().__init__()
        first: nn.Module = nn.LayerNorm(width, eps=EPS) if norm_first else nn.Identity()
        self.pre_transformer_layer = nn.Sequential(first)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x, causal)
        return x
