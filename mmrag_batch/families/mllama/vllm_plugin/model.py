"""Llama 3.2 Vision for vLLM: the encoder, the text model, the head, and where weights go."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from mmrag_batch.families.mllama.vllm_plugin.config import EncoderDecoderMllamaConfig
from mmrag_batch.families.mllama.vllm_plugin.prefill import Prefill, plan
from mmrag_batch.families.mllama.vllm_plugin.processing import (
    MllamaDummyInputsBuilder,
    MllamaMultiModalProcessor,
    MllamaProcessingInfo,
)
from mmrag_batch.families.mllama.vllm_plugin.text import MllamaTextModel
from mmrag_batch.families.mllama.vllm_plugin.versions import (
    cross_attention_metadata,
    order_encoder_outputs,
)
from mmrag_batch.families.mllama.vllm_plugin.vision import EncodedImages, ImageEncoder
from mmrag_batch.families.mllama.vllm_plugin.weights import CHECKPOINT_NAMES


@MULTIMODAL_REGISTRY.register_processor(
    MllamaMultiModalProcessor, info=MllamaProcessingInfo, dummy_inputs=MllamaDummyInputsBuilder
)
class MllamaForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA):
    """The model that vLLM loads for the architecture of this name."""

    packed_modules_mapping = {  # noqa: RUF012  # vLLM's own
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = CHECKPOINT_NAMES

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:  # noqa: ARG003
        """What a chat template without places for images gets for one."""
        return "<|image|>" if modality == "image" else None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        order_encoder_outputs()
        config: EncoderDecoderMllamaConfig = vllm_config.model_config.hf_config
        self.config = config
        self.image_token_id = config.image_token_index
        with self._mark_tower_model(vllm_config, "image"):  # type: ignore[operator]
            self.encoder = ImageEncoder(config, vllm_config.model_config.dtype)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = MllamaTextModel(
                vllm_config=vllm_config, prefix=maybe_prefix(prefix, "language_model")
            )
        head_size = config.text.head_size
        self.missing_logits = config.text.vocab_size - head_size
        self.lm_head = ParallelLMHead(
            head_size,
            config.text.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        self.logits_processor = LogitsProcessor(head_size)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: object = None,  # noqa: ARG002  # images go to cross-attention
        *,
        is_multimodal: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """(rows,) -> (rows, hidden)."""
        return self.language_model.embed_input_ids(input_ids)

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """The packed encoder output of each request; see `ImageEncoder`."""
        return [images.packed() for images in self.encoder(**kwargs)]

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,  # noqa: ARG002
        inputs_embeds: Tensor | None = None,  # noqa: ARG002
        encoder_outputs: Sequence[Tensor] | None = None,
        **_: object,
    ) -> Tensor:
        """Hidden states of all rows of a step.

        encoder_outputs: of the requests that begin in this step and have images, in the order of
        the batch.
        """
        prefill = self._prefill(input_ids, encoder_outputs) if encoder_outputs else None
        return self.language_model(input_ids, positions, prefill)

    def _prefill(self, input_ids: Tensor, encoder_outputs: Sequence[Tensor]) -> Prefill | None:
        metadata = cross_attention_metadata(self.language_model.cross_attention_name)
        if metadata is None:
            return None
        # The host waits for the GPU here, so it reads all at once.
        read = (
            metadata.query_start_loc,
            metadata.seq_lens,
            input_ids == self.image_token_id,
            EncodedImages.headers(encoder_outputs),
        )
        numbers = torch.cat([part.flatten().int() for part in read]).cpu()
        starts, lengths, is_image, headers = numbers.split([part.numel() for part in read])
        images = is_image.nonzero().flatten().tolist()
        tiles = headers.view(len(encoder_outputs), -1).tolist()
        prompts = []
        for start, end, length in zip(starts.tolist(), starts[1:].tolist(), lengths.tolist()):
            places = [place - start for place in images if start <= place < end]
            if length and places:
                prompts.append((start, places))
        encoded = [
            EncodedImages.unpacked(output, counts[: len(places)])
            for output, counts, (_, places) in zip(encoder_outputs, tiles, prompts, strict=True)
        ]
        return plan(prompts, encoded, self.encoder.tokens)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(rows, vocabulary) logits; those that the head leaves out are -inf."""
        logits = self.logits_processor(self.lm_head, hidden_states)
        if logits is None:  # all but the first tensor-parallel rank
            return None
        return F.pad(logits, (0, self.missing_logits), value=-torch.inf)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint of either naming."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Adapters are for the text model."""
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="encoder.multi_modal_projector",
            tower_model="encoder.vision_model",
        )
