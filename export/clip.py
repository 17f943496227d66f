"""CLIP and SigLIP 2 from a local checkpoint of transformers: encoders with other licences than
ImageBind's, fed as transformers' own processors would.

Fixed-size checkpoints only: SigLIP 2's NaFlex variants cut every picture into other patches.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.export.card import licence_of
from mmrag_batch.export.checkpoint import read_json, shard_files
from mmrag_batch.export.processors import read_image_settings
from mmrag_batch.hub.names import title

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
    tokenizer, spec = read_clip(directory)
    try:
        model = AutoModel.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
    except (OSError, ImportError) as error:
        raise MissingError(f"{directory} cannot be loaded: {error}") from None
    return ImageFeatures(model), TextFeatures(model), tokenizer, spec


def read_clip(directory: Path) -> tuple[Tokenizer, RetrieverSpec]:
    """Tokenizer and spec of a checkpoint, whose weights are there. Raises as `open_clip` does."""
    kind = read_json(directory / "config.json").get("model_type")
    if kind not in KINDS:
        raise ConfigError(
            f"{directory} holds a {kind!r}; encoders that can be exported are ImageBind and, of "
            f"transformers, {' and '.join(KINDS)} (not NaFlex)."
        )
    pads = kind == "siglip"  # it attends in both directions, and was trained so
    shard_files(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        loaded_tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ImportError) as error:
        raise MissingError(f"{directory} cannot be loaded: {error}") from None
    length = config.text_config.max_position_embeddings
    tokenizer = _tokenizer(loaded_tokenizer, length, pads=pads, directory=directory)
    if (
        not pads
        and tokenizer.token_to_id(loaded_tokenizer.eos_token) != tokenizer.get_vocab_size() - 1
    ):
        raise ConfigError(f"{directory}: the end token is not the one with the highest id.")
    return tokenizer, RetrieverSpec(
        encoder=title(directory),
        licence=licence_of(directory) or LICENCE,
        embedding_size=config.vision_config.hidden_size if pads else config.projection_dim,
        context_length=length,
        pad_texts=pads,
        **read_image_settings(directory, kind, config.vision_config.image_size),
    )


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
