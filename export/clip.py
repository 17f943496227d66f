"""CLIP and SigLIP 2 from a local checkpoint of transformers: encoders with other licences than
ImageBind's, fed as transformers' own processors would.

Fixed-size checkpoints only: SigLIP 2's NaFlex variants cut every picture into other patches.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.export.processors import read_image_settings

KINDS = ("clip", "siglip")
"""`model_type` of what can be exported; SigLIP 2 of a fixed size calls itself `siglip`."""
LICENCE = "that of the checkpoint; see its model card"


class _Features(nn.Module):
    """One side of a checkpoint, as unit vectors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model


class ImageFeatures(_Features):
    """The image side."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return F.normalize(features, dim=-1)


class TextFeatures(_Features):
    """The text side."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, D)."""
        features = self.model.get_text_features(input_ids=tokens).pooler_output
        return F.normalize(features, dim=-1)


def open_clip(directory: Path) -> tuple[nn.Module, nn.Module, Tokenizer, RetrieverSpec]:
    """Image side, text side, tokenizer and spec of a checkpoint.

    Raises MissingError for files that are not there, ConfigError for what cannot be exported.
    """
    config = _json(directory / "config.json")
    if config.get("model_type") not in KINDS:
        raise ConfigError(
            f"{directory} holds a {config.get('model_type')!r}; encoders that can be exported are "
            f"ImageBind and, of transformers, {' and '.join(KINDS)} (not NaFlex)."
        )
    pads = config["model_type"] == "siglip"  # it attends in both directions, and was trained so
    try:
        model = AutoModel.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        loaded_tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ImportError) as error:
        raise MissingError(f"{directory} cannot be loaded: {error}") from None
    text_config = model.config.text_config
    tokenizer = _tokenizer(
        loaded_tokenizer, text_config.max_position_embeddings, pads=pads, directory=directory
    )
    if (
        not pads
        and tokenizer.token_to_id(loaded_tokenizer.eos_token) != tokenizer.get_vocab_size() - 1
    ):
        raise ConfigError(f"{directory}: the end token is not the one with the highest id.")
    size = model.config.vision_config.hidden_size if pads else model.config.projection_dim
    spec = RetrieverSpec(
        encoder=directory.resolve().name,
        licence=LICENCE,
        embedding_size=size,
        context_length=text_config.max_position_embeddings,
        pad_texts=pads,
        **read_image_settings(
            directory, config["model_type"], model.config.vision_config.image_size
        ),
    )
    return ImageFeatures(model), TextFeatures(model), tokenizer, spec


def _tokenizer(loaded_tokenizer: Any, length: int, *, pads: bool, directory: Path) -> Tokenizer:
    backend = getattr(loaded_tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise MissingError(f"{directory} has no tokenizer.json; convert its tokenizer first.")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.enable_truncation(length)
    if pads:
        tokenizer.enable_padding(
            length=length,
            direction=loaded_tokenizer.padding_side,
            pad_id=loaded_tokenizer.pad_token_id,
            pad_token=loaded_tokenizer.pad_token,
        )
    return tokenizer


def _json(file: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{file} is missing; copy the whole checkpoint.") from None
    except ValueError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return values
