"""The text model: vLLM's own Llama layers, with a cross-attention layer every so often."""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import MllamaTextConfig
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper

from mmrag_batch.families.mllama.vllm_plugin.cross_attention import MllamaCrossAttentionLayer
from mmrag_batch.families.mllama.vllm_plugin.prefill import Prefill

STACKED = WeightsMapper(
    orig_to_new_stacked={
        ".self_attn.q_proj": (".self_attn.qkv_proj", "q"),
        ".self_attn.k_proj": (".self_attn.qkv_proj", "k"),
        ".self_attn.v_proj": (".self_attn.qkv_proj", "v"),
        ".cross_attn.k_proj": (".cross_attn.kv_proj", 0),
        ".cross_attn.v_proj": (".cross_attn.kv_proj", 1),
        ".mlp.gate_proj": (".mlp.gate_up_proj", 0),
        ".mlp.up_proj": (".mlp.gate_up_proj", 1),
    }
)
"""Projections that vLLM computes in one, by their part of it."""


class MllamaTextModel(nn.Module):
    """Token ids and positions -> hidden states, with Hugging Face's names for the weights."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: MllamaTextConfig = vllm_config.model_config.hf_config.text_config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=vllm_config.quant_config
        )
        self.cross_attention_layers = frozenset(config.cross_attention_layers or ())
        first = min(self.cross_attention_layers)
        self.cross_attention_name = f"{prefix}.layers.{first}.cross_attn.attn"
        self.layers = nn.ModuleList(
            MllamaCrossAttentionLayer(vllm_config, config, f"{prefix}.layers.{index}")
            if index in self.cross_attention_layers
            else LlamaDecoderLayer(vllm_config, f"{prefix}.layers.{index}", config)
            for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(rows,) -> (rows, hidden)."""
        return self.embed_tokens(input_ids)

    def forward(
        self, input_ids: Tensor, positions: Tensor, prefill: Prefill | None = None
    ) -> Tensor:
        """input_ids, positions: (rows,). vLLM runs a step with `prefill` outside its graphs."""
        hidden_states, residual = self.embed_tokens(input_ids), None
        for index, layer in enumerate(self.layers):
            if index not in self.cross_attention_layers:
                hidden_states, residual = layer(positions, hidden_states, residual)
                continue
            if residual is not None:
                hidden_states, residual = hidden_states + residual, None
            layer(hidden_states, prefill)
        if residual is None:
            return self.norm(hidden_states)
        return self.norm(hidden_states, residual)[0]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load tensors by Hugging Face's names below the text model."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=STACKED)
