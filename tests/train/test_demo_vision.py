import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.train.demo_vision import Pictures, Recogniser, train_vision
from mmrag_batch.train.settings import DemoVisionConfig


@pytest.fixture
def config(tiny_generator_dir: Path, tmp_path: Path) -> DemoVisionConfig:
    return DemoVisionConfig(
        base=tiny_generator_dir,
        out=tmp_path / "run",
        steps=30,
        batch_size=16,
        learning_rate=3e-3,
        pictures=48,
    )


def test_the_tower_learns_and_the_language_model_stays(config: DemoVisionConfig) -> None:
    before = load_file(config.base / "model.safetensors")
    after = load_file(train_vision(config) / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("vision_model" in name for name in changed)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["colour_loss"] < 2.0  # below log 8: colours are being told apart
    assert 0 <= lines[-1]["shape_accuracy"] <= 1


def test_the_new_generator_has_all_its_files(config: DemoVisionConfig) -> None:
    out = train_vision(replace(config, steps=1))
    assert {file.name for file in out.iterdir()} == {file.name for file in config.base.iterdir()}


def test_a_picture_is_recognised_alike_alone_and_among_others(tiny_generator_dir: Path) -> None:
    recogniser = Recogniser(load_model(tiny_generator_dir, dtype=torch.float32)).eval()
    pictures = Pictures(load_image_processor(tiny_generator_dir), 8, seed=0)
    inputs, shown = next(pictures.batches(len(pictures)))
    with torch.inference_mode():
        together = recogniser(inputs)
        alone = recogniser({name: tensor[:1] for name, tensor in inputs.items()})
    assert shown.shape == (8, 2)
    for batch, one in zip(together, alone):
        assert torch.allclose(batch[:1], one, atol=1e-5)


def test_every_thing_is_shown_equally_often_and_in_a_new_order(tiny_generator_dir: Path) -> None:
    pictures = Pictures(load_image_processor(tiny_generator_dir), 48, seed=0)
    batches = pictures.batches(48)
    first, second = (next(batches)[1].tolist() for _ in range(2))
    assert len({tuple(pair) for pair in first}) == 48
    assert first != second
    assert sorted(first) == sorted(second)
