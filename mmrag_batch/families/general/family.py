"""A model as a family that its own processor describes: a decoder that reads an image as tokens.

Which tokens those are depends on the image's size alone, so they are asked for once a size, of a
blank picture. The processor then gives the pixels of a whole batch, and has to agree.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrag_batch.errors import ConfigError
from mmrag_batch.families.family import BYTES, Shape, read_config, weight_bytes

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SIZES = 4096
"""Sizes of images whose tokens are remembered."""


class General:
    """A checkpoint of a model that transformers and vLLM both know."""

    has_image_tokens = True

    def __init__(self, generator_dir: Path) -> None:
        self._directory = generator_dir
        self._ids_of = lru_cache(SIZES)(self._read_image_ids)

    @cached_property
    def image_token_id(self) -> int:
        """As the config has it, under one of two names."""
        names = ("image_token_id", "image_token_index")
        ids = [self._config[name] for name in names if name in self._config]
        if not ids:
            raise ConfigError(f"{self._directory / 'config.json'} names no {' or '.join(names)}.")
        return int(ids[0])

    @cached_property
    def placeholder(self) -> str:
        """The text of that token."""
        file = self._directory / "tokenizer.json"
        added = json.loads(file.read_text(encoding="utf-8"))["added_tokens"]
        texts = [token["content"] for token in added if token["id"] == self.image_token_id]
        if not texts:
            raise ConfigError(f"{file} has no token {self.image_token_id} for images.")
        return str(texts[0])

    def image_ids(self, size: tuple[int, int]) -> Sequence[int]:
        """What the processor makes of a blank image of that size."""
        return self._ids_of(size)

    def load(
        self,
        *,
        dtype: "torch.dtype",
        quantization: Any = None,
        device: "torch.device | None" = None,
    ) -> Any:
        """The model; see `families/loading.py`."""
        from mmrag_batch.families.loading import load_model

        return load_model(self._directory, dtype=dtype, quantization=quantization, device=device)

    def collate(
        self,
        token_ids: Sequence[Sequence[int]],
        images: Sequence[Sequence["Image"]],
        *,
        pad_id: int,
    ) -> "dict[str, torch.Tensor]":
        """One batch; see `inputs.py`."""
        from mmrag_batch.families.general.inputs import collate

        return collate(self, self._processor, token_ids, images, pad_id=pad_id)

    def module_name(self, name: str) -> str:
        """The name by transformers' own mapping."""
        renamed: str = self._rename(name)
        return renamed

    def shape(self, dtype: str) -> Shape:
        """What a row takes; its images are among its tokens."""
        from transformers import AutoConfig  # what a file leaves out has a default there

        config = AutoConfig.from_pretrained(self._directory, local_files_only=True)
        text: Any = config.get_text_config()
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        saved_as = str(text.dtype or config.dtype or dtype).removeprefix("torch.")
        return Shape(
            weights=weight_bytes(self._directory, dtype, saved_as),
            self_attention_bytes=2 * kv_heads * head * BYTES[dtype] * text.num_hidden_layers,
            cross_attention_bytes=0,
            encoder_tokens=0,
            longest=text.max_position_embeddings,
            kv_heads=kv_heads,
        )

    def vllm_arguments(self, max_images: int) -> Mapping[str, Any]:
        """Pictures alone, prepared as here."""
        return {
            "limit_mm_per_prompt": {"image": max_images, "video": 0},
            "mm_processor_kwargs": {"use_fast": False, **self._pixel_limit},
        }

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_config(self._directory)

    @cached_property
    def _processor(self) -> Any:
        from mmrag_batch.families.general.processor import load_processor

        return load_processor(self._directory)

    @cached_property
    def _pixel_limit(self) -> Mapping[str, Any]:
        from mmrag_batch.families.general.processor import pixel_limit

        return pixel_limit(self._processor.image_processor)

    @cached_property
    def _rename(self) -> Any:
        from mmrag_batch.families.general.names import renaming

        return renaming(self._directory)

    def _read_image_ids(self, size: tuple[int, int]) -> tuple[int, ...]:
        from mmrag_batch.families.general.processor import image_ids

        return image_ids(self._processor, self.placeholder, size)
