"""The road at full size, without its weights: each name and shape of the 11B, on meta tensors."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig

from mmrag_batch.declare import load_config
from mmrag_batch.export.adapter import CONFIG, WEIGHTS
from mmrag_batch.export.checkpoint import INDEX
from mmrag_batch.export.merge import NEEDED, PROCESSOR, plan_merge
from mmrag_batch.families.family import MLLAMA
from mmrag_batch.train.settings import GeneratorConfig
from mmrag_batch.train.tuning import KEPT_IN_FULL, add_lora

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
PRESETS = ["llama_11b_80gb.yaml", "llama_11b_24gb.yaml"]
PUBLISHED_BYTES = 21_340_441_670
"""`total_size` in the index of the published checkpoint; two bytes a weight."""
PROJECTIONS = 7 * 40
"""q, k, v, o, gate, up and down, in each of 32 self- and 8 cross-attention layers."""


def empty_model() -> MllamaForConditionalGeneration:
    """Llama-3.2-11B-Vision-Instruct: the defaults of transformers, but for the size of a tile."""
    config = MllamaConfig(vision_config=MllamaVisionConfig(image_size=560))
    with torch.device("meta"):
        return MllamaForConditionalGeneration(config)


@pytest.fixture(scope="module")
def model() -> MllamaForConditionalGeneration:
    return empty_model()


def published_name(name: str) -> str:
    """How the published checkpoint calls a weight of transformers' model."""
    if name.startswith("lm_head."):
        return "language_model." + name
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1)


@pytest.fixture
def base(model: MllamaForConditionalGeneration, tmp_path: Path) -> Path:
    """The published checkpoint as five files of the right size that hold nothing: they are sparse
    and take no space."""
    directory = tmp_path / "base"
    directory.mkdir()
    for name in (*NEEDED, *PROCESSOR):
        (directory / name).write_text(json.dumps({"architectures": [MLLAMA]}))
    weights = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    names = list(weights)
    weight_map: dict[str, str] = {}
    for number in range(5):
        file = directory / f"model-{number + 1:05}-of-00005.safetensors"
        header, place = {}, 0
        for name in names[number::5]:
            end = place + 2 * weights[name].numel()
            entry = {"dtype": "BF16", "shape": list(weights[name].shape)}
            header[name] = {**entry, "data_offsets": [place, end]}
            weight_map[name] = file.name
            place = end
        text = json.dumps(header).encode()
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + place)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> GeneratorConfig:
    return load_config(CONFIGS / request.param, GeneratorConfig)


@pytest.fixture
def halves(preset: GeneratorConfig) -> dict[str, torch.Tensor]:
    """The weights of the adapter that a preset trains, on the meta device."""
    with torch.device("meta"):
        adapted = add_lora(empty_model(), rank=preset.lora_rank, alpha=preset.lora_alpha)
    return dict(get_peft_model_state_dict(adapted))


def test_the_model_has_as_many_weights_as_the_published_one(
    model: MllamaForConditionalGeneration,
) -> None:
    assert 2 * sum(p.numel() for p in model.parameters()) == PUBLISHED_BYTES


def test_a_preset_reaches_every_projection_and_nothing_else(
    halves: dict[str, torch.Tensor],
) -> None:
    assert len(halves) == 2 * PROJECTIONS
    assert all("language_model.layers." in name for name in halves)
    assert sum("cross_attn" in name for name in halves) == 2 * 4 * 8


def test_the_adapter_of_a_preset_merges_into_the_published_checkpoint(
    base: Path, preset: GeneratorConfig, halves: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    values = {  # of rank 1, which takes less space
        name: torch.ones(1, half.shape[1]) if "lora_A" in name else torch.ones(half.shape[0], 1)
        for name, half in halves.items()
    }
    save_file(values, adapter / WEIGHTS)
    (adapter / CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1}))
    plan = plan_merge(base, adapter)
    assert len(plan.updates) == PROJECTIONS
    assert plan.size >= PUBLISHED_BYTES
    assert "language_model.model.layers.3.cross_attn.k_proj.weight" in plan.updates


def test_what_stays_in_16_bits_is_there(model: MllamaForConditionalGeneration) -> None:
    modules = dict(model.named_modules())
    names = [name for name in KEPT_IN_FULL if name in modules]
    assert names == ["lm_head", "model.vision_model", "model.multi_modal_projector"]
    kept = sum(p.numel() for name in names for p in modules[name].parameters())
    assert 0.1 < 2 * kept / PUBLISHED_BYTES < 0.15
