"""A LoRA adapter in PEFT's format, whoever made it: what it adds to which weight of its base.

Names may be those of any transformers version (`Family.module_name`); alpha and rank may differ
by layer, and the scale may be rank-stabilised (Kalajdzievski 2023). What is not a plain sum, or
would change more than the weights it aims at, is refused.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open

from mmrag_batch.bundle import PICKLES
from mmrag_batch.errors import ConfigError, DeniedError, MissingError
from mmrag_batch.export.checkpoint import DTYPES, Tensor, read_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LORA = re.compile(
    r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?$"
)
PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to initialise LoRA that leave the base as it is; others (PiSSA, OLoRA) move part of it."""
OTHER_METHODS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "target_parameters",
    "modules_to_save",
    "trainable_token_indices",
)
"""Settings of an adapter that is more, or other, than W + B A scale."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to one weight (R, C): `left` (R, r) @ `right` (r, C) * `scale`, in float32."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float
    alpha: float

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Its rows `start` to `stop`."""
        return self.left[start:stop] @ self.right * self.scale

    def is_zero(self) -> bool:
        return not (self.left.any() and self.right.any())


@dataclass(frozen=True, slots=True)
class Adapter:
    """`updates` by the name of the weight in transformers' module of today; `untouched` are the
    names of those that it aims at and does not change."""

    directory: Path
    config: Mapping[str, Any]
    updates: Mapping[str, Update]
    untouched: Sequence[str]


def read_adapter(directory: Path, module_name: Callable[[str], str]) -> Adapter:
    """Read an adapter whose tensors a family names so.

    Raises MissingError where there is none, DeniedError for a pickle, ConfigError for one that is
    no plain LoRA or that changes nothing.
    """
    if any(file.suffix in PICKLES for file in directory.glob("adapter_model.*")):
        raise DeniedError(f"{directory} holds a pickle; save the adapter as safetensors.")
    file = directory / WEIGHTS
    if not file.is_file() or not (directory / CONFIG).is_file():
        raise MissingError(
            f"{directory} holds no adapter ({WEIGHTS}, {CONFIG}); make one with "
            "`mmrag-batch train generator`."
        )
    config = read_json(directory / CONFIG)
    _check_plain(directory, config)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # no mapping
            module, half = _split(directory, name)
            halves.setdefault(module, {})[half] = weights.get_tensor(name).float()
    updates = {
        module_name(module + ".weight"): _update(directory, module, halves[module], config)
        for module in halves
    }
    untouched = [name for name, update in updates.items() if update.is_zero()]
    for name in untouched:
        del updates[name]
    if not updates:
        raise ConfigError(
            f"The adapter {directory} changes nothing. Train it longer, or leave `adapter` out of "
            "the config to bundle its base as it is."
        )
    return Adapter(directory, config, updates, untouched)


def check_fits(adapter: Adapter, base: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ConfigError where an adapter aims at weights that the base lacks, has in another shape
    or has quantised. `tensors` are those of the base by module name."""
    missing = [name for name in adapter.updates if name not in tensors]
    quantised, mismatched = [], []
    for name in adapter.updates.keys() & tensors.keys():
        tensor, shape = tensors[name], adapter.updates[name].shape
        if tensor.dtype not in DTYPES:
            quantised.append(f"{name} ({tensor.dtype})")
        elif tensor.shape != shape:
            mismatched.append(f"{name} {shape}, there {tensor.shape}")
    if quantised:
        raise ConfigError(
            f"{base} has quantised weights: {first_names(quantised)}. Merge into the checkpoint "
            "that it was made from: --base DIR."
        )
    for problem, names in (
        ("aims at weights that the base does not have", missing),
        ("was made for weights of other shapes", mismatched),
    ):
        if names:
            raise ConfigError(
                f"The adapter {adapter.directory} {problem}: {first_names(names)}. Was it "
                f"trained on another model than {base}? Its own configuration names "
                f"{adapter.config.get('base_model_name_or_path')!r}."
            )


def _check_plain(directory: Path, config: Mapping[str, Any]) -> None:
    problems = [name for name in OTHER_METHODS if config.get(name)]
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        problems.append("bias")
    if config.get("init_lora_weights") not in PLAIN_INITS:
        problems.append(f"init_lora_weights {config['init_lora_weights']}")
    if problems:
        raise ConfigError(
            f"{directory / CONFIG}: only plain LoRA can be merged exactly, and this adapter has "
            f"{', '.join(problems)}. Train one without."
        )


def _split(directory: Path, name: str) -> tuple[str, str]:
    """The module and the half (left, right) that a tensor of an adapter is."""
    match = LORA.match(name)
    if match is None:
        raise ConfigError(f"{directory / WEIGHTS} holds {name!r}, which is no part of plain LoRA.")
    module, embedding, letter = match.groups()
    return module, ("embedding_" if embedding else "") + letter


def _update(
    directory: Path, module: str, halves: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> Update:
    if halves.keys() == {"A", "B"}:
        left, right = halves["B"], halves["A"]
    elif halves.keys() == {"embedding_A", "embedding_B"}:
        # An embedding's weight lies the other way round: its rows are the inputs, A's columns.
        left, right = halves["embedding_A"].T, halves["embedding_B"].T
    else:
        raise ConfigError(f"{directory / WEIGHTS}: {module} has {sorted(halves)}, not A and B.")
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise ConfigError(f"{directory / WEIGHTS}: {module} has {shapes}, which do not multiply.")
    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), module), config["lora_alpha"]))
    rank = right.shape[0]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Update(left, right, scale, alpha)


def first_names(names: Iterable[str]) -> str:
    """Some of the names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")
