"""Loading an Mllama checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from mmrag_batch.families import loading


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
    pass_by_position(model.model.vision_model)
    return model


def pass_by_position(vision: MllamaVisionModel) -> None:
    """Hand the vision layers their input by position.

    transformers 5.19 passes it by a keyword that it has deprecated itself and warns on each run.
    """
    for layer in [*vision.transformer.layers, *vision.global_transformer.layers]:
        layer.register_forward_pre_hook(_first_by_position, with_kwargs=True)


def _first_by_position(
    layer: nn.Module,  # noqa: ARG001  # the signature of a hook
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if "hidden_state" in kwargs:
        return (kwargs.pop("hidden_state"), *args), kwargs
    return args, kwargs
