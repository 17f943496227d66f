"""Which row of a prompt attends to which encoder states, as slices instead of a mask.

The rules are those of transformers' processor and model, in which the generator is tuned:

- a row attends to the images of the last group before it: the images that stand next to each
  other, up to the row's own; their real tiles only;
- a row before the first image attends to all tiles of all images, padding included, and leaves out
  the MLP of the cross-attention layer. (Meta's code and old vLLM left out the attention too.)

Rows after a request's last image attend to what its cross-attention cache holds, so vLLM's own
kernel does them, in prefill as in decoding. Only the rows before need attention of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrag_batch.families.mllama.vllm_plugin.vision import EncodedImages


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of the batch that all attend to the same encoder states."""

    rows: slice
    keys: slice


@dataclass(frozen=True, slots=True)
class Prefill:
    """The requests of a step that bring images."""

    states: Tensor
    """(encoder tokens, hidden), of all of them."""
    cached: Sequence[slice]
    """The states that go into the cross-attention cache, of each request in the batch's order."""
    segments: Sequence[Segment] = ()
    """Rows that attend to something else than what is cached."""
    without_mlp: Sequence[slice] = ()
    """Rows before the first image of their request."""


def plan(
    prompts: Sequence[tuple[int, Sequence[int]]],
    encoded: Sequence[EncodedImages],
    tokens_per_tile: int,
) -> Prefill:
    """The slices of each request with images.

    prompts: where the request's rows begin in the batch, and the places of its image tokens within
    them. encoded: its encoder output, with states for all tiles of each image.
    """
    cached: list[slice] = []
    segments: list[Segment] = []
    without_mlp: list[slice] = []
    offset = 0
    for (start, places), output in zip(prompts, encoded, strict=True):
        end = offset + len(output.states)
        if places[0] > 0:
            before = slice(start, start + places[0])
            segments.append(Segment(before, slice(offset, end)))
            without_mlp.append(before)
        keys = list(_attended(places, output.tiles, offset, tokens_per_tile))
        for place, following, attended in zip(places, places[1:], keys):
            segments.append(Segment(slice(start + place, start + following), attended))
        cached.append(keys[-1])
        offset = end
    states = torch.cat([output.states for output in encoded])
    return Prefill(states, cached, segments, without_mlp)


def _attended(
    places: Sequence[int], tiles: Sequence[int], offset: int, tokens_per_tile: int
) -> Iterator[slice]:
    """For each image, the states of its group up to the image itself."""
    begin = end = offset
    for image, place in enumerate(places):
        if image and place != places[image - 1] + 1:
            begin = end
        end += tiles[image] * tokens_per_tile
        yield slice(begin, end)
