"""The layers that attend to images: gated cross-attention and a gated MLP.

A step without a row that has images skips them. Other rows of a step are left as they are: their
attention is set to zero before the output projection, which has no bias.

The CUDA graphs of decoding capture the layer as it runs with images, and read which rows have some
from the runner's own buffers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MllamaTextConfig
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import CrossAttention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.llama import LlamaMLP

from mmrag_batch.families.mllama.vllm_plugin.prefill import Prefill
from mmrag_batch.families.mllama.vllm_plugin.versions import cross_attention_metadata


class MllamaCrossAttention(nn.Module):
    """Queries from text, keys and values from encoder states, RMS norms on both per head."""

    def __init__(self, vllm_config: VllmConfig, config: MllamaTextConfig, prefix: str) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        if config.num_key_value_heads % ranks:
            raise ValueError(
                f"{config.num_key_value_heads} key-value heads cannot be shared by {ranks} "
                "tensor-parallel ranks; lower --tensor-parallel-size."
            )
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.heads = config.num_attention_heads // ranks
        self.kv_heads = config.num_key_value_heads // ranks
        kv_width = config.num_key_value_heads * self.head_dim
        quant = vllm_config.quant_config
        self.q_proj = ColumnParallelLinear(
            width, width, bias=False, quant_config=quant, prefix=f"{prefix}.q_proj"
        )
        self.kv_proj = MergedColumnParallelLinear(
            width, [kv_width] * 2, bias=False, quant_config=quant, prefix=f"{prefix}.kv_proj"
        )
        self.o_proj = RowParallelLinear(
            width, width, bias=False, quant_config=quant, prefix=f"{prefix}.o_proj"
        )
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.attn = CrossAttention(
            self.heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attn",
        )

    def forward(
        self, hidden_states: Tensor, rows: Tensor | None, prefill: Prefill | None
    ) -> Tensor:
        """hidden_states: (rows, hidden). rows: (rows, 1) bool, the rows that have images."""
        q, _ = self.q_proj(hidden_states)
        q = self.q_norm(q.view(-1, self.heads, self.head_dim))
        if prefill is None:
            attended = self.attn(q.flatten(1), None, None)
        else:
            attended = self._prefill(q, prefill)
        if rows is not None:
            attended = attended.masked_fill(~rows, 0)
        output, _ = self.o_proj(attended)
        return output

    def _prefill(self, q: Tensor, prefill: Prefill) -> Tensor:
        """Fill the cache of new requests, then attend row by row as `prefill` says."""
        # Never wrapped by vLLM's LoRA, whose record of adapters has no place for encoder rows: the
        # parts of `kv_proj` are left out of the model's `packed_modules_mapping`.
        kv, _ = self.kv_proj(prefill.states)
        k, v = (part.unflatten(-1, (self.kv_heads, self.head_dim)) for part in kv.chunk(2, dim=-1))
        k, v = self.k_norm(k.contiguous()), v.contiguous()
        attended = self.attn(
            q.flatten(1),
            torch.cat([k[keys] for keys in prefill.cached]),
            torch.cat([v[keys] for keys in prefill.cached]),
        )
        for segment in prefill.segments:
            attended[segment.rows] = _attend(q[segment.rows], k[segment.keys], v[segment.keys])
        return attended


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without a mask. q: (rows, heads, D); k, v: (keys, KV heads, D)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return attended[0].transpose(0, 1).flatten(1)


class MllamaCrossAttentionLayer(nn.Module):
    """One cross-attention layer; adds to the hidden states in place."""

    def __init__(self, vllm_config: VllmConfig, config: MllamaTextConfig, prefix: str) -> None:
        super().__init__()
        self.cross_attn = MllamaCrossAttention(vllm_config, config, f"{prefix}.cross_attn")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.mlp",
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: Tensor, prefill: Prefill | None = None) -> None:
        """hidden_states: (rows, hidden)."""
        metadata = cross_attention_metadata(self.cross_attn.attn.layer_name)
        rows = None
        if metadata is not None:
            if metadata.max_seq_len == 0:
                return
            rows = rows_with_images(metadata.query_start_loc, metadata.seq_lens, len(hidden_states))
        attended = self.cross_attn(self.input_layernorm(hidden_states), rows, prefill)
        hidden_states += self.cross_attn_attn_gate.tanh() * attended

        mixed = self.mlp(self.post_attention_layernorm(hidden_states))
        if rows is not None:
            mixed = mixed.masked_fill(~rows, 0)
        for before in prefill.without_mlp if prefill else ():
            mixed[before] = 0
        hidden_states += self.cross_attn_mlp_gate.tanh() * mixed


def rows_with_images(query_start_loc: Tensor, encoder_lens: Tensor, num_rows: int) -> Tensor:
    """(rows, 1) bool: does a row's request have images?

    query_start_loc: (requests + 1,), where its rows begin. encoder_lens: (requests,).
    Reads no value on the host, so a CUDA graph may hold it.
    """
    ends = query_start_loc[1:]
    row = torch.arange(num_rows, dtype=ends.dtype, device=ends.device)
    request = torch.searchsorted(ends, row, right=True).clamp(max=len(ends) - 1)  # padding rows
    return (encoder_lens[request] > 0)[:, None]
