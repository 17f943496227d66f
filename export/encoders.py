"""Every kind of encoders that can be exported, opened as one thing."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor, nn

from mmrag_batch.bundle import RetrieverSpec
from mmrag_batch.errors import MissingError
from mmrag_batch.export.clip import open_clip, read_clip
from mmrag_batch.export.imagebind import find_vocabulary, load_published, published_tokenizer
from mmrag_batch.progress import Progress
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig, load_encoders, read_config

TOKENIZER = "tokenizer.json"
NOT_FED = ("encoder", "licence", "temperature", "precision", "weights")
"""Fields of a spec that do not say how encoders are fed."""


class ImageEncoder(nn.Module):
    """`ImageBind.encode_image` as a module."""

    def __init__(self, model: ImageBind) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        return self.model.encode_image(pixels)


class TextEncoder(nn.Module):
    """`ImageBind.encode_text` as a module."""

    def __init__(self, model: ImageBind) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, D)."""
        return self.model.encode_text(tokens)


@dataclass(frozen=True, slots=True)
class Encoders:
    """Two modules that give unit vectors (B, D), and all that says how they are fed.

    `image` reads pixels (B, 3, S, S), `text` token ids (B, L).
    """

    image: nn.Module
    text: nn.Module
    tokenizer: Tokenizer
    spec: RetrieverSpec

    def hash_weights(self) -> str:
        """SHA-256 of what embeddings are made with: every weight in float32, whatever its name and
        file, the tokenizer, and how pictures are prepared."""
        weights = {id(one): one for one in chain(self.image.parameters(), self.text.parameters())}
        step = Progress("Hashing weights", len(weights), "tensors")
        digests = []
        with step:
            for weight in weights.values():
                values = weight.detach().float().contiguous().numpy()
                digests.append(hashlib.sha256(values.data).hexdigest())
                step.advance()
        fed = {k: v for k, v in asdict(self.spec).items() if k not in NOT_FED}
        content = json.dumps([sorted(digests), self.tokenizer.to_str(), fed])
        return hashlib.sha256(content.encode()).hexdigest()


def open_encoders(path: Path, vocabulary: Path | None = None) -> Encoders:
    """The encoders at `path`: ImageBind's published checkpoint (a file; `vocabulary` names its list
    of merges), a CLIP or SigLIP 2 checkpoint of transformers, or encoders trained here.

    Raises MissingError, ConfigError and DeniedError as the loaders of each do.
    """
    if path.is_dir():
        return _open_directory(path)
    model = load_published(path)
    merges = vocabulary or find_vocabulary(path)
    encoders = _imagebind(model, published_tokenizer(merges, model.config.context_length))
    return replace(encoders, spec=replace(encoders.spec, clean_texts=True))


def read_encoders(path: Path, vocabulary: Path | None = None) -> RetrieverSpec:
    """How the encoders at `path` will be fed, found without their weights. Raises what
    `open_encoders` raises for everything but those."""
    if not path.is_dir():
        config = ImageBindConfig()
        published_tokenizer(vocabulary or find_vocabulary(path), config.context_length)
        return replace(_spec(config), clean_texts=True)
    if _is_clip(path):
        return read_clip(path)[1]
    _open_tokenizer(path)
    return _spec(read_config(path))


def _open_directory(path: Path) -> Encoders:
    if _is_clip(path):
        image, text, tokenizer, spec = open_clip(path)
        return Encoders(image, text, tokenizer, spec)
    return _imagebind(load_encoders(path), _open_tokenizer(path))


def _is_clip(path: Path) -> bool:
    """Whether a directory is a checkpoint of transformers; else its encoders were trained here."""
    config = path / "config.json"
    return config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8"))


def _open_tokenizer(path: Path) -> Tokenizer:
    file = path / TOKENIZER
    if not file.is_file():
        raise MissingError(f"{file} is missing; train the encoders again.")
    return Tokenizer.from_file(str(file))


def _imagebind(model: ImageBind, tokenizer: Tokenizer) -> Encoders:
    return Encoders(ImageEncoder(model), TextEncoder(model), tokenizer, _spec(model.config))


def _spec(config: ImageBindConfig) -> RetrieverSpec:
    return RetrieverSpec(
        encoder=config.name,
        licence=config.licence,
        embedding_size=config.embedding_size,
        image_size=config.image_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        context_length=config.context_length,
    )
