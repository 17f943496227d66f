"""Loading an Mllama checkpoint: from its own directory, from safetensors, and nothing else."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.modeling_mllama import MllamaVisionModel
from transformers.utils import logging

from mmrag_batch.errors import MissingError
from mmrag_batch.families.family import read_config


def load_model(
    generator_dir: Path,
    *,
    dtype: torch.dtype,
    quantization: Any = None,
    device: torch.device | None = None,
) -> MllamaForConditionalGeneration:
    """The model of a generator directory, in eval mode; on the CPU, where no `device` is named.

    `quantization` is a config of transformers', by which weights are quantised as they are loaded.
    No network, no pickle, no remote code. Raises MissingError for a directory without a
    checkpoint or with one that lacks tensors, UnavailableError for one of another architecture.
    """
    if not any(generator_dir.glob("*.safetensors")):
        raise MissingError(f"{generator_dir} holds no *.safetensors; export the generator again.")
    read_config(generator_dir)
    _check_generation_config(generator_dir / "generation_config.json")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a batch job has its own
    loaded: Any = MllamaForConditionalGeneration.from_pretrained(
        generator_dir,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        quantization_config=quantization,
        device_map=None if device is None else {"": device},
        output_loading_info=True,
    )  # it leaves the model in eval mode
    model: MllamaForConditionalGeneration = loaded[0]
    if absent := sorted(loaded[1]["missing_keys"]):  # it would make them up
        raise MissingError(
            f"{generator_dir} lacks {len(absent)} tensors, such as {absent[0]}; export it again."
        )
    pass_by_position(model.model.vision_model)
    return model


def _check_generation_config(file: Path) -> None:
    """Raise MissingError for one that is broken; transformers would do without it."""
    try:
        is_object = not file.is_file() or isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise MissingError(f"{file} holds no JSON object; export the generator again.")


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
