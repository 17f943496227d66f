import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mmrag_batch.export.checkpoint
from mmrag_batch.errors import DeniedError, MissingError
from mmrag_batch.export.checkpoint import (
    INDEX,
    WHOLE,
    read_rows,
    read_shard,
    shard_files,
    write_rows,
)
from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.families.mllama.loading import load_model

WEIGHTS = {
    "a": torch.arange(12, dtype=torch.float32).view(4, 3),
    "b": torch.arange(6, dtype=torch.bfloat16).view(3, 2),
    "c": torch.tensor(7.0),
}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / WHOLE, {"format": "pt"})
    return tmp_path / WHOLE


def test_tensors_are_found_where_they_lie(shard: Path) -> None:
    tensors = {tensor.name: tensor for tensor in read_shard(shard)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tuple(weight.shape) for name, weight in WEIGHTS.items()
    }
    assert max(tensor.end for tensor in tensors.values()) == shard.stat().st_size
    with shard.open("rb") as stream:
        for name in ("a", "b"):
            assert torch.equal(read_rows(stream, tensors[name], 1, 3), WEIGHTS[name][1:3])


def test_rows_are_replaced_in_their_place(shard: Path) -> None:
    from safetensors.torch import load_file

    tensor = next(tensor for tensor in read_shard(shard) if tensor.name == "b")
    rows = torch.tensor([[9, 8]], dtype=torch.bfloat16)
    with shard.open("r+b") as stream:
        write_rows(stream, tensor, 1, rows)
    found = load_file(shard)
    assert found["b"].tolist() == [[0, 1], [9, 8], [4, 5]]
    assert torch.equal(found["a"], WEIGHTS["a"])
    assert torch.equal(found["c"], WEIGHTS["c"])


@pytest.mark.parametrize(("block", "blocks"), [(1, 4), (24, 2), (25, 2), (36, 2), (48, 1)])
def test_blocks_cover_all_rows_once(
    shard: Path, monkeypatch: pytest.MonkeyPatch, block: int, blocks: int
) -> None:
    monkeypatch.setattr(mmrag_batch.export.checkpoint, "BLOCK", block)
    tensor = next(tensor for tensor in read_shard(shard) if tensor.name == "a")
    found = list(tensor.blocks())
    assert [row for start, stop in found for row in range(start, stop)] == [0, 1, 2, 3]
    assert len(found) == blocks


def test_a_truncated_shard_is_named(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MissingError, match=r"model\.safetensors is damaged"):
        read_shard(shard)


def test_the_index_says_which_shards_there_are(shard: Path) -> None:
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "one.safetensors"}}
    (shard.parent / INDEX).write_text(json.dumps(index))
    with pytest.raises(MissingError, match=r"one\.safetensors is missing"):
        shard_files(shard.parent)
    for name in ("one", "two"):
        (shard.parent / f"{name}.safetensors").touch()
    assert [file.name for file in shard_files(shard.parent)] == [
        "one.safetensors",
        "two.safetensors",
    ]


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors"])
def test_an_index_must_not_leave_its_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(DeniedError, match="outside of"):
        shard_files(tmp_path)


def test_a_directory_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is it a checkpoint"):
        shard_files(tmp_path)


def test_module_names_are_those_of_transformers(tiny_generator_dir: Path) -> None:
    (file,) = shard_files(tiny_generator_dir)
    published = [tensor.name for tensor in read_shard(file)]
    modules = load_model(tiny_generator_dir, dtype=torch.float32).state_dict()
    assert {Mllama.module_name(name) for name in published} == set(modules)
    assert {Mllama.module_name(name) for name in modules} == set(modules)
    assert set(published).isdisjoint(modules)


def test_tensors_are_compared_by_value(shard: Path) -> None:
    first, second = read_shard(shard), read_shard(shard)
    assert first == second
    assert replace(first[0], begin=0) != first[0]
