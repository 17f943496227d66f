import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.errors import MissingError
from mmrag_batch.families.family import MLLAMA, Shape, open_family
from mmrag_batch.generation.engines.vllm_limits import GIB, Limits, choose_limits
from tests.generation.conftest import GENERATOR

LLAMA_11B = Shape(
    weights=21 * GIB,
    self_attention_bytes=131_072,
    cross_attention_bytes=32_768,
    encoder_tokens=6_404,
    longest=131_072,
    kv_heads=8,
    undivided=1_635_778_560,
)
LLAMA_90B = replace(
    LLAMA_11B,
    weights=165 * GIB,
    self_attention_bytes=327_680,
    cross_attention_bytes=81_920,
    undivided=1_698_693_120,
)
"""100 layers, 20 of them of cross-attention."""


def limits(shape: Shape = LLAMA_11B, device: str = "cuda", gib: int = 80, **given: Any) -> Limits:
    settings = {
        "max_images": 1,
        "max_prompt_tokens": 1024,
        "max_new_tokens": 32,
        "rows": None,
        "step_tokens": None,
        "kv_cache_gib": None,
    }
    return choose_limits(shape, device=device, memory=gib * GIB, **{**settings, **given})


def test_the_shape_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    config = {
        "architectures": [MLLAMA],
        "text_config": {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 40,
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
            "max_position_embeddings": 131_072,
            "dtype": "bfloat16",
        },
        "vision_config": {
            "image_size": 560,
            "patch_size": 14,
            "max_num_tiles": 4,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "vision_output_dim": 7680,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert open_family(tmp_path).shape("bfloat16") == replace(LLAMA_11B, weights=1000)
    assert open_family(tmp_path).shape("float32") == replace(
        LLAMA_11B,
        weights=2000,
        self_attention_bytes=262_144,
        cross_attention_bytes=65_536,
        undivided=2 * LLAMA_11B.undivided,
    )


def test_a_gpu_holds_as_many_rows_as_its_memory_has_room_for() -> None:
    chosen = limits()
    assert chosen.row_tokens == 1280
    assert 100 < chosen.rows < 140
    held = chosen.rows * (1280 * 131_072 + 6_404 * 32_768)
    assert held + LLAMA_11B.weights < 80 * GIB * 0.85
    assert chosen.step_tokens == 8192
    assert chosen.kv_cache_bytes is None


def test_more_images_are_fewer_rows_but_no_longer_steps() -> None:
    few, many = limits(), limits(max_images=4)
    assert many.rows < few.rows / 2
    assert many.step_tokens == few.step_tokens


def test_one_row_is_tried_even_where_there_seems_no_room() -> None:
    chosen = limits(gib=16)
    assert chosen.rows == 1
    assert chosen.step_tokens == 8192


def test_a_row_is_never_longer_than_the_model_reads() -> None:
    assert limits(max_prompt_tokens=200_000).row_tokens == 131_072


def test_a_cpu_gets_a_cache_for_its_rows() -> None:
    demo = open_family(GENERATOR).shape("float32")
    row_bytes = 1280 * demo.self_attention_bytes + 40 * demo.cross_attention_bytes
    assert limits(demo, device="cpu", gib=8) == Limits(64, 1280, 2048, 2 * 64 * row_bytes)
    assert limits(demo, device="cpu", gib=8, rows=32).kv_cache_bytes == GIB // 4
    large = limits(device="cpu", gib=64)
    assert large.kv_cache_bytes is not None
    assert large.kv_cache_bytes <= 64 * GIB // 4
    assert 1 < large.rows < 32


@pytest.mark.parametrize(
    ("shape", "gpus", "gib", "engines", "ranks"),
    [
        (LLAMA_11B, 1, 80, 1, 1),
        (LLAMA_11B, 8, 80, 8, 1),
        (LLAMA_11B, 3, 80, 3, 1),
        (LLAMA_11B, 2, 24, 1, 2),
        (LLAMA_11B, 8, 24, 4, 2),
        (LLAMA_90B, 8, 80, 2, 4),
        (LLAMA_90B, 8, 141, 4, 2),
        (LLAMA_90B, 4, 80, 1, 4),
        (LLAMA_90B, 4, 24, 1, 4),  # which is too little, and vLLM will say so
        (LLAMA_11B, 3, 24, 3, 1),  # three do not divide its heads
    ],
)
def test_gpus_share_a_model_only_where_one_has_no_room_for_it(
    shape: Shape, gpus: int, gib: int, engines: int, ranks: int
) -> None:
    chosen = limits(shape, gib=gib, gpus=gpus)
    assert (chosen.engines, chosen.ranks) == (engines, ranks)


def test_gpus_that_share_a_model_share_its_rows_but_not_its_tower() -> None:
    shared = limits(LLAMA_90B, gpus=8)
    row_bytes = 1280 * 327_680 + 6_404 * 81_920
    on_each = LLAMA_90B.undivided + (LLAMA_90B.weights - LLAMA_90B.undivided) // 4
    held = shared.rows * row_bytes // 4 + on_each
    assert held + 5 * GIB < 80 * GIB * shared.gpu_share
    assert held + 5 * GIB + row_bytes // 4 > 80 * GIB * shared.gpu_share - 1
    assert limits(gpus=8).rows == limits().rows  # of each engine


def test_what_lies_beside_an_engine_is_left_out_of_its_share() -> None:
    assert limits(beside=4 * GIB).gpu_share == 0.85
    small = limits(gib=24, gpus=2, beside=4 * GIB)
    assert small.gpu_share * 24 + 4 == pytest.approx(0.9 * 24)
    assert small.rows < limits(gib=24, gpus=2).rows


def test_a_cache_that_is_given_decides_how_many_gpus_share_a_model() -> None:
    chosen = limits(gib=48, gpus=2, kv_cache_gib=20)
    assert (chosen.engines, chosen.ranks, chosen.kv_cache_bytes) == (1, 2, 20 * GIB)
    assert limits(gib=48, gpus=2, kv_cache_gib=4).engines == 2


def test_what_is_given_is_taken() -> None:
    chosen = limits(rows=7, step_tokens=10_000, kv_cache_gib=3)
    assert chosen == Limits(7, 1280, 10_000, 3 * GIB)
    assert limits(kv_cache_gib=3).rows == 3 * GIB // (1280 * 131_072 + 6_404 * 32_768)


def test_a_step_is_never_too_small_for_one_row() -> None:
    assert limits(step_tokens=100).step_tokens == 1280
    assert limits(step_tokens=100, max_prompt_tokens=9000).step_tokens == 9256


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        open_family(tmp_path).shape("float32")
