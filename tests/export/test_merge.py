from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.merge import ADAPTER_WEIGHTS, COMPANIONS, check_changes, merge_adapter
from mmrag_batch.errors import ConfigError, DeniedError, MissingError
from mmrag_batch.generation.mllama_model import load_model


def test_merging_equals_adapter_and_base(
    tiny_generator_dir: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    difference = merge_adapter(tiny_generator_dir, make_adapter(0.05), tmp_path / "merged")
    assert difference <= 1e-4

    before = load_model(tiny_generator_dir, dtype=torch.float32).state_dict()
    after = load_model(tmp_path / "merged", dtype=torch.float32).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {name.split(".")[-2] for name in changed}
    assert parts == {"q_proj", "v_proj", "gate_proj", "fc1"}
    aimed_at = {name for name in before if name.split(".")[-2] in parts}
    assert changed == {name for name in aimed_at if name.endswith(".weight")}


def test_a_merged_directory_is_whole(
    tiny_generator_dir: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    merge_adapter(tiny_generator_dir, make_adapter(0.05), tmp_path / "merged")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert names == {*COMPANIONS, "config.json", "model.safetensors"}
    modes = {file.stat().st_mode for file in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1


def test_an_untrained_adapter_is_refused(
    tiny_generator_dir: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        merge_adapter(tiny_generator_dir, make_adapter(0.0), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_pickled_adapter_is_refused(
    tiny_generator_dir: Path, make_adapter: Callable[[float], Path], tmp_path: Path
) -> None:
    adapter = make_adapter(0.05)
    (adapter / ADAPTER_WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(DeniedError, match="pickle"):
        merge_adapter(tiny_generator_dir, adapter, tmp_path / "merged")


def test_a_directory_without_an_adapter_is_refused(
    tiny_generator_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match="no adapter"):
        merge_adapter(tiny_generator_dir, tmp_path, tmp_path / "merged")


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        ({"a", "b"}, "left weights unchanged that it aims at: b"),
        (set(), "does not aim at: a"),
        ({"a", "z"}, "does not have: z"),
    ],
)
def test_only_the_weights_aimed_at_may_change(targets: set[str], complaint: str) -> None:
    before = {"a": torch.zeros(2), "b": torch.zeros(2)}
    after = {"a": torch.ones(2), "b": torch.zeros(2)}
    with pytest.raises(ConfigError, match=complaint):
        check_changes(before, after, targets)
