"""Loading an Mllama checkpoint."""

from pathlib import Path
from typing import Any

import torch
from transformers import MllamaForConditionalGeneration

from mmrag_batch.families import loading
from mmrag_batch.families.mllama.vision import prepare_vision


def load_model(
    generator_dir: Path,
    *,
    dtype: torch.dtype,
    quantization: Any = None,
    device: torch.device | None = None,
) -> MllamaForConditionalGeneration:
    """The model of a generator directory; see `families/loading.py`."""
    model: MllamaForConditionalGeneration = loading.load_model(
        generator_dir, dtype=dtype, quantization=quantization, device=device
    )
    prepare_vision(model.model.vision_model)
    return model
