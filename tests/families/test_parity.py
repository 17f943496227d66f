"""Both engines give the same answers, family by family, whole and with an adapter merged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mmrag_batch.export.merge import merge_adapter
from mmrag_batch.families.family import open_family
from mmrag_batch.train.tuning import decoder_layers
from tests.families.parity import as_bundle
from tests.families.tiny import build

DOUBLES = Path(__file__).parent / "doubles"
PROMISED = ("idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "internvl")
"""Both engines are asked; of the others transformers is, in test_general.py, as each start of vLLM
takes its time. `python -m tests.families.parity` asks both about any."""
WHOLE = "idefics3"
"""Runs without torchvision, so without a double of it."""
ANSWERS = 12


def write_adapter(base: Path, out: Path) -> Path:
    """An adapter of noise on the decoder."""
    torch.manual_seed(1)
    model = open_family(base).load(dtype=torch.float32)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=decoder_layers(model))
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(str(out))
    return out


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each family, a folder with a generator: a base with an adapter merged into it."""
    root = tmp_path_factory.mktemp("families")
    folders = {}
    for name in PROMISED:
        base = build(name, root / "bases" / name)
        folders[name] = root / name
        adapter = write_adapter(base, root / "adapters" / name)
        report = merge_adapter(base, adapter, folders[name] / "generator")
        assert report.logits is not None
        assert report.logits < 1e-4
        assert report.merged == 2 * 7  # in each of its layers
    return folders


def run(*words: object, doubles: bool = False) -> str:
    """What a command in a process of its own says; it must succeed."""
    paths = [*([str(DOUBLES)] if doubles else []), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.vllm
def test_both_engines_give_the_same_answers_with_a_merged_adapter(
    merged: dict[str, Path],
) -> None:
    folders = [folder for name, folder in merged.items() if name != WHOLE]
    said = run("tests.families.parity", *folders, doubles=True)
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"family"')]
    assert {one["family"] for one in found} == set(PROMISED) - {WHOLE}
    for one in found:
        assert (one["rows"], one["same"]) == (ANSWERS, ANSWERS), one
        assert one["probability"] < 1e-5, one


@pytest.mark.vllm
def test_doctor_says_how_far_the_engines_are_apart(merged: dict[str, Path]) -> None:
    said = run("mmrag_batch", "doctor", "--bundle", as_bundle(merged[WHOLE]))
    assert f"give {ANSWERS} of {ANSWERS} answers alike" in said
    assert float(said.split("differ by ")[1].split()[0]) < 1e-5
