import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmrag_batch.errors import ConfigError
from mmrag_batch.export.adapter import CONFIG, WEIGHTS, read_adapter
from mmrag_batch.families.mllama.family import Mllama

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
PARTS = {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.ones(5, 2)}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of one module with these settings."""

    def write(
        module: str = "base_model.model.lm_head",
        parts: dict[str, torch.Tensor] = PARTS,
        **settings: object,
    ) -> Path:
        save_file({f"{module}.{name}": part for name, part in parts.items()}, tmp_path / WEIGHTS)
        (tmp_path / CONFIG).write_text(json.dumps({**SETTINGS, **settings}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"lm_head": 8}}, 4.0),
        ({"alpha_pattern": {"head": 8}}, 3.0),
        ({"alpha_pattern": {"^lm_head": 8}, "use_rslora": True}, 8 / math.sqrt(2)),
        ({"r": 64}, 3.0),  # rank_pattern: the tensors say what the rank is
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1, "modules_to_save": []}, 3.0),
    ],
)
def test_the_scale_is_alpha_over_rank_or_its_root(
    write: Callable[..., Path], settings: dict[str, object], scale: float
) -> None:
    (update,) = read_adapter(write(**settings), Mllama.module_name).updates.values()
    assert update.shape == (5, 3)
    assert update.rank == 2
    torch.testing.assert_close(update.rows(1, 3), torch.full((2, 3), 2 * scale))


@pytest.mark.parametrize(
    "module",
    [
        "base_model.model.model.language_model.layers.0.self_attn.q_proj",
        "base_model.model.language_model.model.layers.0.self_attn.q_proj",
        "language_model.model.layers.0.self_attn.q_proj",
    ],
)
def test_names_of_any_version_are_understood(write: Callable[..., Path], module: str) -> None:
    for ending in ("", ".default"):
        parts = {
            f"lora_A{ending}.weight": torch.ones(2, 3),
            f"lora_B{ending}.weight": torch.ones(5, 2),
        }
        found = read_adapter(write(module, parts), Mllama.module_name)
        assert list(found.updates) == ["model.language_model.layers.0.self_attn.q_proj.weight"]


def test_an_embedding_lies_the_other_way_round(write: Callable[..., Path]) -> None:
    parts = {
        "lora_embedding_A": torch.tensor([[1.0, 2, 3]]),  # (r, rows)
        "lora_embedding_B": torch.tensor([[1.0], [10]]),  # (columns, r)
    }
    (update,) = read_adapter(
        write("language_model.model.embed_tokens", parts), Mllama.module_name
    ).updates.values()
    assert update.rows(1, 3).tolist() == [[12.0, 120.0], [18.0, 180.0]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
    ],
)
def test_what_is_more_than_a_sum_is_refused(
    write: Callable[..., Path], settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"only plain LoRA .* has {named}"):
        read_adapter(write(**settings), Mllama.module_name)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        (
            {**PARTS, "weight": torch.ones(5, 3)},
            r"'base_model\.model\.lm_head\.weight', which is no",
        ),
        ({**PARTS, "lora_magnitude_vector": torch.ones(5)}, "magnitude_vector', which is no"),
        ({"lora_A.weight": torch.ones(2, 3)}, r"has \['A'\], not A and B"),
        ({**PARTS, "lora_B.weight": torch.ones(5, 4)}, "which do not multiply"),
        ({**PARTS, "lora_A.weight": torch.ones(2, 3, 1, 1)}, "which do not multiply"),
    ],
)
def test_tensors_that_make_no_update_are_refused(
    write: Callable[..., Path], parts: dict[str, torch.Tensor], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_adapter(write(parts=parts), Mllama.module_name)


@pytest.mark.parametrize("zero", list(PARTS))
def test_an_adapter_with_a_half_of_zeros_changes_nothing(
    write: Callable[..., Path], zero: str
) -> None:
    with pytest.raises(ConfigError, match="changes nothing"):
        read_adapter(
            write(parts={**PARTS, zero: torch.zeros_like(PARTS[zero])}), Mllama.module_name
        )
