"""Which engine a run gets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrag_batch import factory
from mmrag_batch.config import DeviceName, EngineName, PredictSettings

SETTINGS = PredictSettings(input=Path("in.csv"), output=Path("out.csv"))


@pytest.mark.parametrize(
    ("engine", "device", "installed", "gpu", "expected"),
    [
        ("auto", "auto", True, True, "vllm"),
        ("auto", "cuda", True, True, "vllm"),
        ("auto", "cpu", True, True, "transformers"),
        ("auto", "auto", True, False, "transformers"),
        ("auto", "auto", False, True, "transformers"),
        ("vllm", "cpu", False, False, "vllm"),
        ("transformers", "auto", True, True, "transformers"),
    ],
)
def test_auto_is_vllm_where_there_is_a_gpu_for_it(
    engine: EngineName,
    device: DeviceName,
    installed: bool,
    gpu: bool,
    expected: EngineName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factory, "find_spec", lambda _: "vllm" if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert factory._engine_name(replace(SETTINGS, engine=engine, device=device)) == expected


def test_cores_are_parted_between_retrieval_and_the_engine() -> None:
    assert 1 <= factory.RETRIEVAL_CORES <= max(1, factory.CORES // 2)
