"""ImageBind's image and text encoders (Girdhar et al., arXiv:2305.05665) as plain PyTorch.

At any size, with the tensor names of the published `imagebind_huge.pth`, so that checkpoint loads
as it is. Both encoders are pre-norm transformers; the published video stem sees a still image as
two equal frames, which is computed here as one convolution with the kernels of both frames summed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmrag_batch.errors import MissingError
from mmrag_batch.train.transformer import EPS, Trunk

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ImageBindConfig:
    """What the encoders are; the defaults are the published `imagebind_huge`.

    Sizes are in pixels, dimensions and tokens; mean and deviation by channel (R, G, B) of pixels
    in [0, 1].
    """

    name: str = "imagebind_huge"
    licence: str = "CC-BY-NC-SA-4.0"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    image_size: int = 224
    patch_size: int = 14
    image_width: int = 1280
    image_blocks: int = 32
    image_heads: int = 16
    text_width: int = 1024
    text_blocks: int = 24
    text_heads: int = 16
    context_length: int = 77
    vocabulary: int = 49_408
    embedding_size: int = 1024


class PatchStem(nn.Module):
    """Pixels -> patch embeddings, with the published name and shape of the kernel."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        kernel = (2, config.patch_size, config.patch_size)
        convolution = nn.Conv3d(3, config.image_width, kernel, stride=kernel, bias=False)
        self.proj = nn.Sequential(nn.Identity(), convolution)
        self.patch_size = config.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, patches, W)."""
        convolution = self.proj[1]
        assert isinstance(convolution, nn.Conv3d)
        kernel = convolution.weight.sum(dim=2)  # both frames of a still image are equal
        return F.conv2d(pixels, kernel, stride=self.patch_size).flatten(2).transpose(1, 2)


class PositionEmbedding(nn.Module):
    """Learned positions of the class token and the patches."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, positions, width) * 0.02)


class ImagePreprocessor(nn.Module):
    """Pixels -> tokens: patches behind a class token, with positions added."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.image_width) * 0.02)
        self.rgbt_stem = PatchStem(config)
        self.pos_embedding_helper = PositionEmbedding(1 + patches, config.image_width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + patches, W)."""
        patches = self.rgbt_stem(pixels)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class TextPreprocessor(nn.Module):
    """Token ids -> embeddings with positions added. `mask` is the published, unused buffer."""

    mask: Tensor

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        length = config.context_length
        self.pos_embed = nn.Parameter(torch.randn(1, length, config.text_width) * 0.01)
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu_(1))
        self.token_embedding = nn.Embedding(config.vocabulary, config.text_width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, L, W)."""
        out: Tensor = self.token_embedding(tokens) + self.pos_embed[:, : tokens.shape[1]]
        return out


class TextHead(nn.Module):
    """The projection of a text's end token."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(config.text_width, eps=EPS),
            nn.Linear(config.text_width, config.embedding_size, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, W) -> (B, D)."""
        out: Tensor = self.proj(x)
        return out


class LogitScale(nn.Module):
    """The learned factor on cosines that ImageBind trains its texts with."""

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self) -> Tensor:
        """The factor, at most 100 as in the published model."""
        return self.log_logit_scale.exp().clamp(max=100)


class ImageBind(nn.Module):
    """Both encoders. Unlike the published model, texts come out as unit vectors, unscaled."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        self.modality_preprocessors = nn.ModuleDict(
            {"vision": ImagePreprocessor(config), "text": TextPreprocessor(config)}
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": Trunk(
                    config.image_width, config.image_blocks, config.image_heads, norm_first=True
                ),
                "text": Trunk(
                    config.text_width, config.text_blocks, config.text_heads, norm_first=False
                ),
            }
        )
        image_head = nn.Sequential(
            nn.LayerNorm(config.image_width, eps=EPS),
            nn.Identity(),
            nn.Linear(config.image_width, config.embedding_size, bias=False),
        )
        self.modality_heads = nn.ModuleDict({"vision": image_head, "text": TextHead(config)})
        text_postprocessor = nn.Sequential(nn.Identity(), LogitScale())
        self.modality_postprocessors = nn.ModuleDict({"text": text_postprocessor})

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, D) unit vectors."""
        tokens = self.modality_preprocessors["vision"](pixels)
        tokens = self.modality_trunks["vision"](tokens, causal=False)
        return F.normalize(self.modality_heads["vision"](tokens[:, 0]), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, L) token ids, zero-padded, L up to the context length -> (B, D) unit vectors.

        A text is read off at its end token, which has the highest id; attention is causal, so what
        follows the end token changes nothing.
        """
        x = self.modality_preprocessors["text"](tokens)
        x = self.modality_trunks["text"](x, causal=True)
        end = tokens.argmax(dim=1)[:, None, None].expand(-1, 1, x.shape[-1])
        return F.normalize(self.modality_heads["text"](x.gather(1, end).squeeze(1)), dim=-1)

    def logit_scale(self) -> Tensor:
        """The learned factor on the cosine of a text and an image."""
        scale: Tensor = self.modality_postprocessors["text"].get_submodule("1")()
        return scale


def save_encoders(model: ImageBind, directory: Path) -> None:
    """Write `model.safetensors` and `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")


def load_encoders(directory: Path) -> ImageBind:
    """The encoders that `save_encoders` wrote, in eval mode. Raises MissingError."""
    with torch.device("meta"):  # no time spent on weights that are replaced at once
        model = ImageBind(read_config(directory))
    model.load_state_dict(load_file(directory / WEIGHTS), assign=True)
    return model.eval()


def read_config(directory: Path) -> ImageBindConfig:
    """The sizes of encoders that `save_encoders` wrote, whose weights are there. Raises
    MissingError."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise MissingError(f"{directory} holds no encoders: {directory / name} is missing.")
    values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    tuples = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return ImageBindConfig(**{**values, **tuples})
