"""The names of a checkpoint's tensors in transformers' module of today."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def renaming(generator_dir: Path) -> Callable[[str], str]:
    """From names on disk, or in an adapter, to names in the module. No weight is read."""
    config = AutoConfig.from_pretrained(generator_dir, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
    changes = get_model_conversion_mapping(model)
    rename = partial(
        rename_source_key,
        weight_renamings=[one for one in changes if isinstance(one, WeightRenaming)],
        weight_converters=[one for one in changes if isinstance(one, WeightConverter)],
        base_model_prefix=model.base_model_prefix,
        meta_state_dict=model.state_dict(),
    )
    return lambda name: rename(name)[0]
