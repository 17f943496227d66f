"""The vision tower as this project runs it: transformers' layers, and attention without a mask.

A GPU's fast kernels take none. transformers masks a pair of tokens only where both are padding, by
a matrix of tokens by tokens for each image (41 million numbers in the 11B). So a real token attends
to all tokens and a padding one to the real ones: two attentions without a mask give the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

NAME = "mllama_vision"
"""Under which transformers knows `attend`."""


@dataclass(frozen=True, slots=True)
class Order:
    """Each image's real tokens before its padding, and images with equally many of them together.

    To its layers the order of tokens is nothing, as their positions were added before.
    """

    groups: Sequence[tuple[slice, int]]
    """Images, and how many real tokens each of them has."""
    places: Tensor
    """(images * tokens,), where each token was."""
    undone: Tensor
    """(images * tokens,), where each token goes back to."""

    @classmethod
    def of(cls, mask: Tensor) -> "Order":
        """mask: (images, 1, tokens, tokens), transformers'; the last token is padding, as no square
        and a class token make a multiple of eight. The host waits for the GPU here."""
        padding = (mask[:, 0, -1] != 0).cpu()
        counts = (~padding).sum(dim=1).tolist()
        images = sorted(range(len(counts)), key=counts.__getitem__)
        groups, start = [], 0
        for count, same in groupby(counts[image] for image in images):
            end = start + len(list(same))
            groups.append((slice(start, end), count))
            start = end
        tokens = padding[images].int().argsort(dim=1, stable=True)
        places = (tokens + torch.tensor(images)[:, None] * padding.shape[1]).flatten()
        return cls(groups, *(part.to(mask.device) for part in (places, places.argsort())))

    def apply(self, states: Tensor) -> Tensor:
        """(images, tokens, width), in this order."""
        return states.flatten(0, 1)[self.places].view_as(states)

    def undo(self, states: Tensor) -> Tensor:
        """(images, tokens, width), as they were."""
        return states.flatten(0, 1)[self.undone].view_as(states)


def attend(
    module: nn.Module,  # noqa: ARG001  # the signature of transformers' attention functions
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Order,
    *,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """query, key, value: (images, heads, tokens, D) -> (images, tokens, heads, D)."""
    attended = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for images, real in attention_mask.groups:
        q, k, v = query[images], key[images], value[images]
        for rows, keys in ((slice(real), slice(None)), (slice(real, None), slice(real))):
            found = scaled_dot_product_attention(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], scale=scaling
            )
            attended[images, rows] = found.transpose(1, 2)
    return attended, None


class Encoder(nn.Module):
    """Takes the place of transformers' `MllamaVisionEncoder`; its weights have the same names."""

    def __init__(self, layers: nn.ModuleList, kept: Collection[int]) -> None:
        super().__init__()
        self.layers = layers
        self.kept = kept
        """Layers whose output is asked for; transformers keeps all until the end."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """hidden_states: (images, tokens, width). attention_mask: transformers'."""
        order = Order.of(attention_mask)
        hidden_states = order.apply(hidden_states)
        kept: list[Any] = [None] * len(self.layers)
        for number, layer in enumerate(self.layers):
            # By position: transformers 5.19 has deprecated the keyword that it uses.
            hidden_states = layer(hidden_states, order)
            if number in self.kept:
                kept[number] = order.undo(hidden_states)
        last = cast(torch.FloatTensor, order.undo(hidden_states))
        return BaseModelOutput(last, tuple(kept))


def prepare_vision(vision: MllamaVisionModel) -> None:
    """Have a vision tower work so."""
    AttentionInterface.register(NAME, attend)
    vision.config._attn_implementation = NAME
    kept = vision.intermediate_layers_indices or ()
    for name, layers in (("transformer", kept), ("global_transformer", ())):
        vision.add_module(name, Encoder(getattr(vision, name).layers, layers))
