"""Llama 3.2 Vision as a family: an encoder-decoder, whose decoder sees an image as one token."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrag_batch.errors import ConfigError
from mmrag_batch.families.family import BYTES, Shape, read_config, weight_bytes

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


RENAMED = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_model|multi_modal_projector)\."), r"model.\1."),
)
"""How the names in published checkpoints, and in adapters for transformers up to 4.51, turn into
those of the modules of today."""


class Mllama:
    """A checkpoint of Llama 3.2 Vision."""

    placeholder = "<|image|>"
    has_image_tokens = False

    def __init__(self, generator_dir: Path) -> None:
        self._directory = generator_dir

    def load(
        self,
        *,
        dtype: "torch.dtype",
        quantization: Any = None,
        device: "torch.device | None" = None,
    ) -> Any:
        """The model. Raises ConfigError where it and what prepares its images do not fit."""
        from mmrag_batch.families.mllama.loading import load_model

        model = load_model(self._directory, dtype=dtype, quantization=quantization, device=device)
        if any(self._directory.glob("*processor_config.json")):  # a run's checkpoint has none
            self._check_image_processor()
        return model

    @property
    def image_token_id(self) -> int:
        """Of the placeholder."""
        return int(self._config["image_token_index"])

    def image_ids(self, size: tuple[int, int]) -> Sequence[int]:  # noqa: ARG002
        """One token, as the decoder sees what an image shows by cross-attention."""
        return (self.image_token_id,)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_config(self._directory)

    @cached_property
    def _image_processor(self) -> Any:
        from mmrag_batch.families.mllama.inputs import load_image_processor

        return load_image_processor(self._directory)

    def _check_image_processor(self) -> None:
        vision, prepared = self._config["vision_config"], self._image_processor
        sides = {prepared.size["height"], prepared.size["width"], vision["image_size"]}
        tiles = {prepared.max_image_tiles, vision["max_num_tiles"]}
        if len(sides) > 1 or len(tiles) > 1:
            raise ConfigError(
                f"{self._directory}: preprocessor_config.json makes other tiles than config.json "
                f"has room for ({sides=}, {tiles=}); export the generator again."
            )

    def collate(
        self,
        token_ids: Sequence[Sequence[int]],
        images: Sequence[Sequence["Image"]],
        *,
        pad_id: int,
    ) -> "dict[str, torch.Tensor]":
        """One batch; see `inputs.py`."""
        from mmrag_batch.families.mllama.inputs import collate

        return collate(token_ids, images, self._image_processor, pad_id, self.image_token_id)

    @staticmethod
    def module_name(name: str) -> str:
        """The name of a tensor in transformers' module of today."""
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        return name

    def shape(self, dtype: str) -> Shape:
        """What a row takes."""
        text, vision = self._config["text_config"], self._config["vision_config"]
        head = text["hidden_size"] // text["num_attention_heads"]
        kv = 2 * text["num_key_value_heads"] * head * BYTES[dtype]  # a key and a value
        cross = len(text["cross_attention_layers"])
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        layers = vision["num_hidden_layers"] + vision["num_global_layers"]
        width, inner = vision["hidden_size"], vision["intermediate_size"]
        tower = layers * (4 * width + 2 * inner) * width
        tower += vision["vision_output_dim"] * text["hidden_size"]  # the projector
        return Shape(
            weights=weight_bytes(self._directory, dtype, text.get("dtype", dtype)),
            self_attention_bytes=kv * (text["num_hidden_layers"] - cross),
            cross_attention_bytes=kv * cross,
            encoder_tokens=vision["max_num_tiles"] * (patches + 1),
            longest=text["max_position_embeddings"],
            kv_heads=text["num_key_value_heads"],
            undivided=tower * BYTES[dtype],
        )

    def vllm_arguments(self, max_images: int) -> Mapping[str, Any]:
        """Its images go to an encoder; `vllm_plugin` brings the model."""
        return {"limit_mm_per_prompt": {"image": max_images}}
