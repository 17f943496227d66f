"""A checkpoint that no engine here can run is refused by its config, before a weight is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.families.family import open_family, read_config


def load(directory: Path) -> object:
    return open_family(directory).load(dtype=torch.float32)


def measure(directory: Path) -> object:
    return open_family(directory).shape("float32")


@pytest.mark.parametrize("open_", [load, measure], ids=["transformers", "vllm"])
@pytest.mark.parametrize("architectures", [["LlavaForConditionalGeneration"], [], None])
def test_h05_another_architecture_is_refused_before_a_weight_is_loaded(
    tmp_path: Path, architectures: list[str] | None, open_: Callable[[Path], object]
) -> None:
    (tmp_path / "model.safetensors").touch()  # no engine could read it
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    with pytest.raises(UnavailableError, match=r"Llama 3\.2 Vision"):
        open_(tmp_path)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        read_config(tmp_path)
