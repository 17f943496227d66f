"""The tensors of a full-size checkpoint, in both public namings, all have a place."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def shapes() -> dict[str, torch.Size]:
    """transformers' names and shapes of the default configuration, which is the 11B's."""
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(MllamaConfig())
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def as_published(name: str) -> str:
    """The original naming, in which the hub's checkpoints are."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1)


@contextmanager
def full_size_model(tmp_path: Path) -> Iterator[Any]:
    """The plugin's model of the default configuration on the meta device."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs

    from mmrag_batch.families.mllama.vllm_plugin.model import (
        MllamaForConditionalGeneration as Served,
    )

    config = MllamaConfig(architectures=["MllamaForConditionalGeneration"]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = EngineArgs(
        model=str(tmp_path),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=8192,
        limit_mm_per_prompt={"image": 1},
        max_num_batched_tokens=8192,
        enforce_eager=True,
    ).create_engine_config()
    with set_current_vllm_config(settings):
        init_distributed_environment(1, 0, f"file://{tmp_path}/group", 0, "gloo")
        initialize_model_parallel(1)
        with torch.device("meta"):
            yield Served(vllm_config=settings)
    cleanup_dist_env_and_memory()


@pytest.mark.parametrize("naming", [str, as_published], ids=["transformers'", "the hub's"])
def test_every_tensor_of_the_11b_has_its_place(
    shapes: dict[str, torch.Size],
    naming: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with full_size_model(tmp_path) as model:
        loaded = model.load_weights(
            (naming(name), torch.empty(shape, dtype=torch.bfloat16))
            for name, shape in shapes.items()
        )
        assert loaded == {name for name, _ in model.named_parameters()}
        ours = sum(parameter.numel() for parameter in model.parameters())
        embedding = model.language_model.embed_tokens  # vLLM rounds its rows up
        rounded = embedding.num_embeddings_padded - embedding.org_vocab_size
    assert ours - rounded * embedding.embedding_dim == sum(
        shape.numel() for shape in shapes.values()
    )


def test_the_namings_are_the_public_ones(
    shapes: dict[str, torch.Size], random_generator_dir: Path
) -> None:
    from safetensors import safe_open

    with safe_open(random_generator_dir / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    assert "language_model.model.layers.3.cross_attn.k_proj.weight" in saved
    assert saved <= {as_published(name) for name in shapes}
