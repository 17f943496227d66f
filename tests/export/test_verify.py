from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmrag_batch.errors import ConfigError, InternalError
from mmrag_batch.export.adapter import Update
from mmrag_batch.export.checkpoint import read_shard
from mmrag_batch.export.verify import changed_tensors, check_changes, check_samples, steps_apart

ALL = slice(None)


def update(*, rank: int = 4) -> Update:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(600, rank, generator=generator)
    right = torch.randn(rank, 50, generator=generator)
    return Update(left, right, scale=0.5, alpha=2.0)


def write(directory: Path, weights: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    save_file(weights, directory / "model.safetensors")
    return directory / "model.safetensors"


def test_each_byte_that_changed_is_found(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(5, 3), "b": torch.ones(2), "c": torch.zeros(0)}
    before = write(tmp_path / "before", weights)
    shards = {before: read_shard(before)}
    write(tmp_path / "same", weights)
    assert changed_tensors(shards, tmp_path / "same") == set()
    weights["a"][4, 2] = -0.0  # equal as a number, another byte
    write(tmp_path / "other", weights)
    assert changed_tensors(shards, tmp_path / "other") == {"a"}


def test_another_layout_is_no_merge(tmp_path: Path) -> None:
    before = write(tmp_path / "before", {"a": torch.zeros(5, 3)})
    write(tmp_path / "after", {"a": torch.zeros(3, 5)})
    with pytest.raises(InternalError, match="another layout"):
        changed_tensors({before: read_shard(before)}, tmp_path / "after")


def test_only_the_weights_aimed_at_may_change() -> None:
    assert check_changes({"a", "b"}, {"a", "b"}) == []
    assert check_changes({"a"}, {"a", "b"}) == ["b"]
    with pytest.raises(ConfigError, match="nothing of the adapter: all 2 weights"):
        check_changes(set(), {"a", "b"})
    with pytest.raises(InternalError, match="does not aim at: a"):
        check_changes({"a", "b"}, {"b"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [4, 256])
def test_a_rounded_sum_is_within_a_step(dtype: torch.dtype, rank: int) -> None:
    change = update(rank=rank)
    weight = torch.randn(600, 50).to(dtype)
    merged = (weight.float() + change.rows(0, 600)).to(dtype)
    assert 0 < steps_apart(weight, merged, change, ALL) <= 1


@pytest.mark.parametrize("scale", [0.0, 0.49, 1.0])
def test_another_scale_is_found(tmp_path: Path, scale: float) -> None:
    change = update()
    weight = torch.randn(600, 50).bfloat16()
    other = Update(change.left, change.right, scale, alpha=2.0)
    before = write(tmp_path / "before", {"a": weight})
    write(tmp_path / "after", {"a": (weight.float() + other.rows(0, 600)).bfloat16()})
    with pytest.raises(InternalError, match=r"a is not W \+ B A scale"):
        check_samples({before: read_shard(before)}, tmp_path / "after", {"a": change})


def test_a_number_that_is_none_is_found(tmp_path: Path) -> None:
    before = write(tmp_path / "before", {"a": torch.ones(600, 50)})
    write(tmp_path / "after", {"a": torch.full((600, 50), torch.nan)})
    with pytest.raises(InternalError):
        check_samples({before: read_shard(before)}, tmp_path / "after", {"a": update()})
