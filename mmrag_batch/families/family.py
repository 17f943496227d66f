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

from mmrag_batch.bundle import read_prompt_settings
from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.parts import find_manifest
from mmrag_batch.plugs import load
from mmrag_batch.prompt import EVIDENCE_FIRST, IMAGES_FIRST

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
    kv_heads: int = 1
    """Key-value heads: as many GPUs as divide them can share the model."""
    undivided: int = 0
    """Bytes of the weights that each of them would hold whole."""


class Family(Protocol):
    """A generator directory of this kind, opened; nothing heavy is loaded until it is asked for.

    `has_image_tokens`: what an image shows are tokens of the prompt. Otherwise its placeholder is
    the only one, whatever its size.
    """

    has_image_tokens: bool

    @property
    def placeholder(self) -> str:
        """The token that the chat template writes for an image, once each."""
        ...

    @property
    def image_token_id(self) -> int:
        """The id of the placeholder in prompts."""
        ...

    def image_ids(self, size: tuple[int, int]) -> Sequence[int]:
        """What takes the place of the placeholder of an image of that width and height (pixels),
        as token ids; asked where `has_image_tokens`."""
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
        many images, and one placeholder for each. Raises ValueError where they have not."""
        ...

    def module_name(self, name: str) -> str:
        """The name that a tensor on disk, of a checkpoint or of an adapter, has in the module that
        `load` gives."""
        ...

    def shape(self, dtype: str) -> Shape:
        """What a row takes in `dtype`, `float32` or `bfloat16`."""
        ...

    def vllm_arguments(self, max_images: int) -> Mapping[str, Any]:
        """What vLLM must be told of it beyond what every model needs."""
        ...


def expand(family: Family, token_ids: Sequence[int], images: Sequence["Image"]) -> list[int]:
    """A prompt's tokens as the decoder has them, those of its images in place of placeholders.

    Raises ValueError where there is not one placeholder for each image.
    """
    if list(token_ids).count(family.image_token_id) != len(images):
        raise ValueError(f"{len(images)} images, but another number of image tokens")
    if not family.has_image_tokens:
        return list(token_ids)
    expanded: list[int] = []
    remaining = iter(images)
    for token in token_ids:
        is_image = token == family.image_token_id
        expanded += family.image_ids(next(remaining).size) if is_image else (token,)
    return expanded


BYTES = {"float32": 4, "bfloat16": 2}
"""Of one number, by dtype."""


def weight_bytes(generator_dir: Path, dtype: str, saved_as: str) -> int:
    """Bytes of all weights of a checkpoint in `dtype`, given the one that they are saved in."""
    stored = sum(weights.stat().st_size for weights in generator_dir.glob("*.safetensors"))
    return stored * BYTES[dtype] // BYTES.get(saved_as, 2)


def pad_left(
    token_ids: Sequence[Sequence[int]], pad_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of one length, and for each of their tokens 1, or 0 where it only fills the row."""
    length = max(map(len, token_ids))
    padded = [[pad_id] * (length - len(row)) + list(row) for row in token_ids]
    attended = [[0] * (length - len(row)) + [1] * len(row) for row in token_ids]
    return padded, attended


MLLAMA = "MllamaForConditionalGeneration"
_GENERAL = "mmrag_batch.families.general.family:General"
FAMILIES: dict[str, Callable[[Path], Family] | str] = {
    MLLAMA: "mmrag_batch.families.mllama.family:Mllama",
    "Qwen2_5_VLForConditionalGeneration": _GENERAL,
    "Qwen3VLForConditionalGeneration": _GENERAL,
    "InternVLForConditionalGeneration": _GENERAL,
    "Idefics3ForConditionalGeneration": _GENERAL,
    "SmolVLMForConditionalGeneration": _GENERAL,
    "Mistral3ForConditionalGeneration": _GENERAL,
    "LlavaOnevisionForConditionalGeneration": _GENERAL,
    "Glm4vForConditionalGeneration": _GENERAL,
}
"""By the architecture that config.json names: a class, or where it is, so that it loads late."""
_UNPROVEN = "its engines were not found to agree; that takes a GPU to show"
REFUSED: Mapping[str, str] = {
    "Gemma3ForConditionalGeneration": "vLLM on a CPU attends causally over its images",
    "Gemma4ForConditionalGeneration": "vLLM on a CPU attends causally over its images",
    "Qwen3_5ForConditionalGeneration": _UNPROVEN,
    "Qwen3_5MoeForConditionalGeneration": _UNPROVEN,
    "Qwen3VLMoeForConditionalGeneration": _UNPROVEN,
    "LlavaForConditionalGeneration": "its templates put images first, wherever they belong",
}
"""Why some that the engines would load are not run."""


def add_family(architecture: str, family: Callable[[Path], Family]) -> None:
    """Let checkpoints of that architecture be run by this family."""
    FAMILIES[architecture] = family


def open_family(generator_dir: Path) -> Family:
    """The family of a generator directory. Raises what `read_config` does."""
    architecture = read_architecture(generator_dir)
    return load(FAMILIES.get(architecture, _GENERAL))(generator_dir)


def read_architecture(generator_dir: Path) -> str:
    """The architecture of a generator; one that is not in `FAMILIES` nobody has tested, and it is
    run as what its processor describes. Raises what `read_config` does."""
    return str(read_config(generator_dir)["architectures"][0])


def check_tested(generator_dir: Path, *, untested: bool = False) -> None:
    """Raise UnavailableError for an architecture that nobody has tested, unless `untested` allows
    it, and for one that is no vision-language model."""
    if (architecture := read_architecture(generator_dir)) in FAMILIES:
        return
    where = f"{generator_dir / 'config.json'} names the architecture {architecture}"
    if not untested:
        raise UnavailableError(
            f"{where}, which nobody has tested here. {_known()} With `untested`, `export` and "
            "`train generator` take it all the same; `mmrag-batch doctor --bundle` then tells "
            "whether the engines agree."
        )
    from transformers.models.auto import modeling_auto

    if architecture not in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
        raise UnavailableError(f"{where}; transformers has no such one for images and texts.")


def template_version(generator_dir: Path, adapter: Path | None = None) -> int:
    """The prompt template that a generator is to be asked with: the one that it, or its adapter,
    was tuned with, that of the bundle it is a part of, or else the one of its kind. Only where
    images are tokens of the prompt do engines cache prefixes."""
    for directory in (adapter, generator_dir):
        if directory and (tuned := read_prompt_settings(directory)):
            return int(tuned["template_version"])
    if (manifest := find_manifest(generator_dir)) is not None:
        return manifest.template_version
    return EVIDENCE_FIRST if open_family(generator_dir).has_image_tokens else IMAGES_FIRST


def read_config(generator_dir: Path) -> dict[str, Any]:
    """config.json of a generator directory.

    Raises MissingError where there is none, UnavailableError for a model that is refused, for one
    of no single architecture, and for one that brings code of its own.
    """
    file = generator_dir / "config.json"
    if not file.is_file():
        raise MissingError(f"{file} is missing; export the generator again.")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    named = ", ".join(config.get("architectures") or ["none"])
    if ", " in named or named in {"none", *REFUSED}:
        why = REFUSED.get(named, "it is not known what it is")
        raise UnavailableError(
            f"{file} names the architecture {named}; {why}. {_known()} Export a generator of one "
            "of these."
        )
    if "auto_map" in config:
        raise UnavailableError(
            f"{file} asks for code of its own (auto_map), which is never run. Use a checkpoint in "
            "the format of transformers, often named `...-hf`."
        )
    return config


def _known() -> str:
    names = ", ".join(name.removesuffix("ForConditionalGeneration") for name in FAMILIES)
    return f"The engines here run {names} (Llama 3.2 Vision and others, see docs/models.md)."
