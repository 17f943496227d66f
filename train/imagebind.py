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

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class ImageBindConfig:
    """Sizes; the defaults are `imagebind_huge`."""

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


class Attention(nn.Module):
    """Multi-head self-attention, with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        mixed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in mixed.chunk(3, dim=-1)
        )  # each (B, H, T, W / H)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm_1 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = MLP(width)
        self.norm_2 = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.norm_1(x), causal)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out


class Trunk(nn.Module):
    """The blocks of one encoder; images pass a LayerNorm before them, texts do not."""

    def __init__(self, width: int, blocks: int, heads: int, *, norm_first: bool) -> None:
        super().__init__()
        first: nn.Module = nn.LayerNorm(width, eps=_EPS) if norm_first else nn.Identity()
        self.pre_transformer_layer = nn.Sequential(first)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x, causal)
        return x


class PatchStem(nn.Module):
    """Pixels -> patch embeddings, with the published name and shape of the kernel."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        kernel = (2, config.patch_size, config.patch_size)
        video = nn.Conv3d(3, config.image_width, kernel, stride=kernel, bias=False)
        self.proj = nn.Sequential(nn.Identity(), video)
        self.patch_size = config.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, patches, W)."""
        video = self.proj[1]
        assert isinstance(video, nn.Conv3d)
        kernel = video.weight.sum(dim=2)  # both frames of a still image are equal
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
            nn.LayerNorm(config.text_width, eps=_EPS),
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
            nn.LayerNorm(config.image_width, eps=_EPS),
            nn.Identity(),
            nn.Linear(config.image_width, config.embedding_size, bias=False),
        )
        self.modality_heads = nn.ModuleDict({"vision": image_head, "text": TextHead(config)})
        scaled = nn.Sequential(nn.Identity(), LogitScale())
        self.modality_postprocessors = nn.ModuleDict({"text": scaled})

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
    try:
        config = ImageBindConfig(**json.loads((directory / CONFIG).read_text()))
        tensors = load_file(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise MissingError(f"{directory} holds no encoders: {error.filename} is missing.") from None
    model = ImageBind(config)
    model.load_state_dict(tensors)
    return model.eval()
