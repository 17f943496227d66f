"""Loading a checkpoint of any family: from its directory, from safetensors, and nothing else."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.families.family import read_architecture


def load_model(
    generator_dir: Path,
    *,
    dtype: torch.dtype,
    quantization: Any = None,
    device: torch.device | None = None,
) -> Any:
    """The model of a generator directory, in eval mode; on the CPU, where no `device` is named.

    `quantization` is a config of transformers', by which weights are quantised as they are loaded.
    No network, no pickle, no remote code. Raises MissingError for a directory without a
    checkpoint or with one that lacks tensors, UnavailableError for one of another architecture.
    """
    if not any(generator_dir.glob("*.safetensors")):
        raise MissingError(f"{generator_dir} holds no *.safetensors; export the generator again.")
    architecture = read_architecture(generator_dir)
    _check_generation_config(generator_dir / "generation_config.json")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a batch job has its own
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # of its configs' own defaults
    if not hasattr(transformers, architecture):
        raise UnavailableError(f"transformers {transformers.__version__} has no {architecture}.")
    # By its own name: vLLM puts other configs where the automatic classes look.
    loaded: Any = getattr(transformers, architecture).from_pretrained(
        generator_dir,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        quantization_config=quantization,
        device_map=None if device is None else {"": device},
        output_loading_info=True,
    )  # it leaves the model in eval mode
    model, report = loaded
    if absent := sorted(report["missing_keys"]):  # it would make them up
        raise MissingError(
            f"{generator_dir} lacks {len(absent)} tensors, such as {absent[0]}; export it again."
        )
    settings = model.generation_config
    if settings.pad_token_id is None:  # any will do: it is masked
        ends = settings.eos_token_id
        settings.pad_token_id = ends[0] if isinstance(ends, list) else ends or 0
    return model


def _check_generation_config(file: Path) -> None:
    """Raise MissingError for one that is broken; transformers would do without it."""
    try:
        is_object = not file.is_file() or isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise MissingError(f"{file} holds no JSON object; export the generator again.")
