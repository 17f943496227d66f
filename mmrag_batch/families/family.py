"""What is special about a kind of generator, and which kinds there are: told from config.json
before a weight is loaded.

Adding a family is a module with a class and a line in `FAMILIES`, or, from elsewhere, a call of
`add_family`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.plugs import load

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how much memory a row takes. Bytes are those of one token in the KV cache."""

    weights: int
    """Bytes of all weights in the engine's dtype."""
    self_attention_bytes: int
    cross_attention_bytes: int
    encoder_tokens: int
    """Of one image with all its tiles: 6,404 in Llama 3.2 Vision 11B."""
    longest: int
    """The most tokens that the model has positions for."""


class Family(Protocol):
    """A generator directory of this kind, opened; nothing heavy is loaded until it is asked for.

    `placeholder` is the token that the chat template writes for an image, once each. LoRA tunes
    the layers whose names `lora_targets` (a regular expression) matches; those that `kept_in_full`
    names are not quantised when others are: what a model sees and what it answers with.
    """

    placeholder: str
    lora_targets: str
    kept_in_full: tuple[str, ...]

    @property
    def image_token_id(self) -> int:
        """The id of the placeholder in prompts."""
        ...

    def load(
        self,
        *,
        dtype: "torch.dtype",
        quantization: Any = None,
        device: "torch.device | None" = None,
    ) -> Any:
        """The model, in eval mode; on the CPU where no device is named. No network, no pickle, no
        remote code. `quantization` is a config of transformers', for weights as they are loaded."""
        ...

    def collate(
        self,
        token_ids: Sequence[Sequence[int]],
        images: Sequence[Sequence["Image"]],
        *,
        pad_id: int,
    ) -> "dict[str, torch.Tensor]":
        """One left-padded batch (B, L) as the model's `forward` takes it; its rows have equally
        many images. Raises ValueError where they have not."""
        ...

    @staticmethod
    def module_name(name: str) -> str:
        """The name that a tensor on disk, of a checkpoint or of an adapter, has in the module that
        `load` gives."""
        ...

    def shape(self, dtype: str) -> Shape:
        """What a row takes in `dtype`, `float32` or `bfloat16`."""
        ...

    def vllm_arguments(self, max_images: int) -> Mapping[str, Any]:
        """What vLLM must be told of it beyond what every model needs."""
        ...


BYTES = {"float32": 4, "bfloat16": 2}
"""Of one number, by dtype."""


def pad_left(
    token_ids: Sequence[Sequence[int]], pad_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of one length, and for each of their tokens 1, or 0 where it only fills the row."""
    length = max(map(len, token_ids))
    padded = [[pad_id] * (length - len(row)) + list(row) for row in token_ids]
    attended = [[0] * (length - len(row)) + [1] * len(row) for row in token_ids]
    return padded, attended


MLLAMA = "MllamaForConditionalGeneration"
FAMILIES: dict[str, Callable[[Path], Family] | str] = {
    MLLAMA: "mmrag_batch.families.mllama.family:Mllama",
}
"""By the architecture that config.json names: a class, or where it is, so that it loads late."""


def add_family(architecture: str, family: Callable[[Path], Family]) -> None:
    """Let checkpoints of that architecture be run by this family."""
    FAMILIES[architecture] = family


def open_family(generator_dir: Path) -> Family:
    """The family of a generator directory. Raises what `read_config` does."""
    (architecture,) = read_config(generator_dir)["architectures"]
    return load(FAMILIES[architecture])(generator_dir)


def read_config(generator_dir: Path) -> dict[str, Any]:
    """config.json of a generator directory.

    Raises MissingError where there is none, UnavailableError for a model of no family here.
    """
    file = generator_dir / "config.json"
    if not file.is_file():
        raise MissingError(f"{file} is missing; export the generator again.")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    named = config.get("architectures") or ["none"]
    if len(named) != 1 or named[0] not in FAMILIES:
        raise UnavailableError(
            f"{file} names the architecture {', '.join(named)}; the engines here run "
            f"{', '.join(FAMILIES)} (Llama 3.2 Vision). Export a generator of that."
        )
    return config
