"""CLIP and SigLIP 2 from a local checkpoint of transformers: encoders with other licences than
ImageBind's, fed as transformers' own processors would.

Fixed-size checkpoints only: SigLIP 2's NaFlex variants cut every picture into other patches.
"""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import ConfigError, MissingError

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
        **_image_settings(directory),
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


def _image_settings(directory: Path) -> dict[str, Any]:
    """What `preprocessor_config.json` says, as fields of a spec."""
    file = directory / "preprocessor_config.json"
    values = _json(file)
    size, crop = values.get("size"), values.get("crop_size")
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    crop = crop.get("height") if isinstance(crop, dict) else crop
    is_cropped = bool(values.get("do_center_crop"))
    is_stretched = isinstance(size, dict) and "height" in size
    if is_cropped == is_stretched or (is_cropped and crop != side):
        raise ConfigError(f"{file}: pictures resized to {size} and cut to {crop} are not known.")
    try:
        resample = Image.Resampling(values["resample"]).name.lower()
        mean, std = (_channels(values, name) for name in ("image_mean", "image_std"))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{file}: {error} is missing or not known.") from None
    if resample not in ("bicubic", "bilinear"):
        raise ConfigError(f"{file}: pictures resized with {resample!r} are not known.")
    return {
        "image_size": side,
        "image_mean": mean,
        "image_std": std,
        "framing": "stretch" if is_stretched else "transformers",
        "resample": resample,
    }


def _channels(values: dict[str, Any], name: str) -> tuple[float, ...]:
    """A value for each channel. Raises KeyError."""
    if not values.get(name):
        raise KeyError(name)
    return tuple(values[name])


def _json(file: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{file} is missing; copy the whole checkpoint.") from None
    except ValueError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return values
