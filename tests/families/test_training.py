"""Training by the same code, whatever the family: LoRA, in full precision and in 4 bits, and in
full; what comes out is a checkpoint that answers as it was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrag_batch.export.merge import write_generator
from mmrag_batch.families.family import open_family
from mmrag_batch.train.generator import train_generator
from mmrag_batch.train.settings import GeneratorConfig
from tests.families.tiny import build

FAMILIES = ("idefics3", "qwen2_5_vl", "internvl")


@pytest.fixture
def config(demo_table: Path, tmp_path: Path) -> Callable[..., GeneratorConfig]:
    def make(name: str, **settings: Any) -> GeneratorConfig:
        base = build(name, tmp_path / "base")
        common = {"top_k": 2, "max_images": 2, "max_prompt_tokens": 1024, "scoring": "letter"}
        return GeneratorConfig(
            base=base,
            table=demo_table,
            out=tmp_path / "run",
            batch_size=4,
            learning_rate=1e-3,
            **{"steps": 30, "held_out": 0, **common, **settings},
        )

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_trained_and_merged(
    config: Callable[..., GeneratorConfig], tmp_path: Path, name: str
) -> None:
    settings = config(name, lora_rank=4)
    adapter = train_generator(settings)
    names = [key for key in load_file(adapter / "adapter_model.safetensors") if "lora_B" in key]
    assert len(names) == 2 * 7
    lines = (settings.out / "metrics.jsonl").read_text().splitlines()
    losses = [said["loss"] for said in map(json.loads, lines) if "loss" in said]
    assert losses[-1] < losses[0]
    report = write_generator(settings.base, adapter, tmp_path / "merged")
    assert report.merged == len(names)
    assert report.logits is not None
    assert report.logits < 1e-4


def test_a_model_is_tuned_in_full_and_its_tower_left_alone(
    config: Callable[..., GeneratorConfig],
) -> None:
    settings = config("idefics3", lora_rank=0, freeze_vision=True, held_out=0)
    before = open_family(settings.base).load(dtype=torch.float32).state_dict()
    after = open_family(train_generator(settings)).load(dtype=torch.float32).state_dict()
    changed = {name for name, one in after.items() if not torch.equal(one, before[name])}
    assert changed
    assert not any("vision_model" in name for name in changed)


def test_weights_in_4_bits_are_those_of_the_decoder(
    config: Callable[..., GeneratorConfig],
) -> None:
    from mmrag_batch.train.generator import trainable

    model = trainable(config("qwen2_5_vl", lora_rank=4, four_bits=True))
    kinds = {name: type(one).__name__ for name, one in model.named_modules()}
    quantised = [name for name, kind in kinds.items() if kind == "Linear4bit"]
    assert quantised
    assert all("language_model" in name for name in quantised)
