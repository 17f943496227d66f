"""The settings of what trains and exports: their files load, and are refused before torch is."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.declare import load_config
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.train.settings import (
    DemoEncodersConfig,
    DemoVisionConfig,
    EncodersConfig,
    GeneratorConfig,
    RetrieverConfig,
    VisionConfig,
)

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "transformers", "onnxruntime"}


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("train/configs/demo_encoders.yaml", DemoEncodersConfig),
        ("train/configs/demo_vision.yaml", DemoVisionConfig),
        ("train/configs/small_encoders.yaml", EncodersConfig),
        ("train/configs/small_vision.yaml", VisionConfig),
        ("export/configs/small.yaml", ExportConfig),
        ("train/configs/demo_retriever.yaml", RetrieverConfig),
        ("train/configs/own_retriever.yaml", RetrieverConfig),
        ("train/configs/demo_base.yaml", GeneratorConfig),
        ("train/configs/demo_generator.yaml", GeneratorConfig),
        ("export/configs/demo.yaml", ExportConfig),
    ],
)
def test_the_configs_in_the_package_load(file: str, kind: type[Any]) -> None:
    assert isinstance(load_config(ROOT / file, kind), kind)


def test_an_optional_path_is_a_path_and_a_rate_a_number() -> None:
    tuned = load_config(ROOT / "train/configs/demo_generator.yaml", GeneratorConfig)
    assert isinstance(tuned.retriever, Path)
    assert tuned.learning_rate == 0.002


@pytest.mark.parametrize(
    "command",
    [
        ["train", "retriever"],
        ["train", "generator"],
        ["train", "encoders"],
        ["train", "vision"],
        ["demo", "encoders"],
        ["demo", "vision"],
        ["export", "--config"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_a_config_is_told_before_anything_heavy_is_loaded(
    command: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("{ouut: runs/a}")
    arguments = [sys.executable, "-X", "importtime", "-m", "mmrag_batch", *command, str(config)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 78, done.stderr[-2000:]
    assert f"{config}, ouut: no such setting; did you mean 'out'?" in done.stderr
    assert f"{config}: 'out' is missing; expected a path." in done.stderr
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "yaml" in loaded
    assert loaded & HEAVY == set()
