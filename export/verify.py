"""What was merged, read again from the disk and compared with base and adapter."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from PIL import Image
from safetensors import safe_open

from mmrag_batch.errors import ConfigError, InternalError
from mmrag_batch.export.adapter import Adapter, Update
from mmrag_batch.export.checkpoint import BLOCK, Tensor, read_shard, shard_files
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Question

SAMPLED = 256
"""Rows of each merged weight that are compared with W + B A scale."""
MOST_STEPS = 1.0
"""How far a merged weight may be from that, in steps of its dtype: rounding takes half of one."""
TOLERANCE = {"F32": 1e-4, "F16": 5e-2, "BF16": 5e-1}
"""Largest difference of a logit from adapter + base, whose weights are not rounded after adding."""
MEMORY = 5 * 2**28
"""How far two copies of the weights in float32 may exceed the largest shard for logits to be
compared: merging, with what it imports, stays within the largest shard + 2 GiB."""

Shards = Mapping[Path, Sequence[Tensor]]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was measured on the written checkpoint.

    `merged`: weights that changed; `kept`: tensors that are the base's, byte by byte; `weights`:
    the largest difference of a sampled weight from W + B A scale, in steps of its dtype; `logits`:
    the largest difference of a logit from adapter + base, None where the model does not fit into
    memory.
    """

    merged: int
    kept: int
    weights: float
    logits: float | None


def changed_tensors(
    shards: Shards, out: Path, read: Callable[[int], None] = lambda _: None
) -> set[str]:
    """The names of the tensors whose bytes in `out` are not those of the base. `read` is told how
    many bytes were compared.

    Raises InternalError for a shard of another layout.
    """
    changed: set[str] = set()
    for file, tensors in shards.items():
        copy = out / file.name
        if read_shard(copy) != [replace(tensor, file=copy) for tensor in tensors]:
            raise InternalError(f"{copy} has another layout than {file}; please report it.")
        for tensor in tensors:
            if not _same_bytes(tensor, file, copy):
                changed.add(tensor.name)
            read(tensor.end - tensor.begin)
    return changed


def _same_bytes(tensor: Tensor, before: Path, after: Path) -> bool:
    with before.open("rb") as base_stream, after.open("rb") as merged_stream:
        base_stream.seek(tensor.begin)
        merged_stream.seek(tensor.begin)
        sizes = range(tensor.begin, tensor.end, BLOCK)
        return all(
            base_stream.read(size) == merged_stream.read(size)
            for size in (min(BLOCK, tensor.end - offset) for offset in sizes)
        )


def check_changes(changed: set[str], targets: set[str]) -> list[str]:
    """The weights that the adapter updates and that merging left as they were, for rounding.

    Raises ConfigError where they are all of them, InternalError where it changed another one.
    """
    unexpected = sorted(changed - targets)
    if targets and not changed & targets:
        raise ConfigError(
            f"Rounding leaves nothing of the adapter: all {len(targets)} weights that it updates "
            "are as they were. Train it longer, or merge into a base of more bits."
        )
    if unexpected:
        raise InternalError(
            f"Merging changed weights that it does not aim at: {', '.join(unexpected[:3])} "
            f"({len(unexpected)}); please report it."
        )
    return sorted(targets - changed)


def check_samples(shards: Shards, out: Path, updates: Mapping[str, Update]) -> float:
    """The largest difference of a merged weight from W + B A scale, in steps of its dtype.

    Taken over rows from the middle of each, read and computed apart from the merge. Raises
    InternalError where it is more than rounding.
    """
    max_steps = 0.0
    for file, tensors in shards.items():
        targets = [tensor for tensor in tensors if tensor.name in updates]
        with safe_open(file, "pt") as base, safe_open(out / file.name, "pt") as merged:
            for tensor in targets:
                start = max(0, (tensor.shape[0] - SAMPLED) // 2)
                part = slice(start, start + SAMPLED)
                weight = base.get_slice(tensor.name)[part]
                merged_weight = merged.get_slice(tensor.name)[part]
                steps = steps_apart(weight, merged_weight, updates[tensor.name], part)
                if not steps <= MOST_STEPS:  # catches nan, too
                    raise InternalError(
                        f"{tensor.name} is not W + B A scale but {steps:.1f} steps of its dtype "
                        "away; please report it."
                    )
                max_steps = max(max_steps, steps)
    return max_steps


def steps_apart(
    weight: torch.Tensor, merged_weight: torch.Tensor, update: Update, part: slice
) -> float:
    """How far `merged_weight` is from `weight` + rows `part` of `update`: 1 is the dtype's relative
    step at the size of what was added up (of float32 eight, as its sums of products round, too)."""
    left, right = update.left[part].double(), update.right.double()
    expected = weight.double() + left @ right * update.scale
    size = weight.double().abs() + left.abs() @ right.abs() * abs(update.scale)
    eps = max(torch.finfo(weight.dtype).eps, 8 * torch.finfo(torch.float32).eps)
    step = eps * size + torch.finfo(weight.dtype).smallest_normal
    return float(((merged_weight.double() - expected).abs() / step).max())


def check_logits(base: Path, adapter: Adapter, out: Path, *, always: bool = False) -> float | None:
    """The largest difference of a logit between `out` and adapter + base, computed in float32.

    None where that takes more memory than merging may (see `MEMORY`), unless `always`. Raises
    InternalError where it is more than the rounding of the merged weights explains.
    """
    shards = {file: read_shard(file) for file in shard_files(base)}
    tensors = [tensor for shard in shards.values() for tensor in shard]
    needed_bytes = 2 * 4 * sum(math.prod(tensor.shape) for tensor in tensors)
    largest = max(file.stat().st_size for file in shards)
    if needed_bytes > largest + MEMORY and not always:
        log.info(
            "Logits are not compared: that takes %.0f GiB; --logits does it.", needed_bytes / 2**30
        )
        return None
    with Progress("Comparing logits"):
        expected = _sample_logits(_adapted(base, adapter), base)
        merged_logits = _sample_logits(open_family(out).load(dtype=torch.float32), out)
    difference = float((merged_logits - expected).abs().max())
    tolerance = max(TOLERANCE.get(tensor.dtype, 0.0) for tensor in tensors)
    if not difference <= tolerance:  # catches nan, too
        raise InternalError(
            f"Merging {adapter.directory} changed a logit by {difference:.2e} (at most "
            f"{tolerance:.0e}); please report it."
        )
    return difference


def _adapted(base: Path, adapter: Adapter) -> PeftModel:
    """The base with the adapter beside it, as peft runs it, whatever names the adapter uses."""
    updates = {name.removesuffix(".weight"): update for name, update in adapter.updates.items()}
    config = LoraConfig(
        target_modules=list(updates),
        rank_pattern={f"^{name}": update.rank for name, update in updates.items()},
        alpha_pattern={f"^{name}": update.alpha for name, update in updates.items()},
        use_rslora=bool(adapter.config.get("use_rslora")),
    )
    model = get_peft_model(open_family(base).load(dtype=torch.float32), config)
    weights = {}
    for name, update in updates.items():
        embedding = "embed_tokens" in name
        a, b = (update.right, update.left) if not embedding else (update.left.T, update.right.T)
        kind, end = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
        weights[f"base_model.model.{name}.{kind}A{end}"] = a
        weights[f"base_model.model.{name}.{kind}B{end}"] = b
    missing_and_unexpected: Any = set_peft_model_state_dict(model, weights)
    assert not missing_and_unexpected.unexpected_keys
    return model.eval()


@torch.inference_mode()
def _sample_logits(model: torch.nn.Module, generator_dir: Path) -> torch.Tensor:
    """The logits (1, L, V) of a choice question about a picture."""
    question = Question(
        text="What is shown?",
        image="sample",
        choices=("a square", "a gradient"),
        documents=(),
        label=None,
        relevant=None,
    )
    picture = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
    token_ids = Renderer(generator_dir).render(
        build_prompt(question, (), PromptSpec(1, 0, "letter")).messages
    )
    # One row is not padded.
    inputs = open_family(generator_dir).collate([token_ids], [[picture]], pad_id=0)
    logits: torch.Tensor = model(**inputs).logits
    return logits
