"""Tiles -> encoder outputs: the vision tower, its projector, and the form in which vLLM hands an
output from the encoder to the decoder.

The tower is transformers' own module, whole on each tensor-parallel rank. It has 0.9 of the 11
billion weights and runs once a request, and it has exactly the quirks of the reference: padding
tiles and the padding patches of each tile are only partly masked and do change the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from mmrag_batch.generation.mllama_model import pass_by_position
from mmrag_batch.mllama.config import EncoderDecoderMllamaConfig

TOKENS_AT_ONCE = 32_768
"""Most tokens that go through the tower at once: five images of the 11B keep a large GPU busy, and
activations stay within what vLLM measured."""


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The encoder output of one request.

    Attention without a mask does not depend on the order of its keys. So the real tiles of all
    images come first, in the order of the images, and the padding of all images last: what any
    token attends to is one slice.
    """

    tiles: Sequence[int]
    """Real tiles of each image."""
    states: Tensor
    """(images * max tiles * tokens, hidden)."""

    def packed(self) -> Tensor:
        """One tensor, as vLLM wants it: a header row with the tiles, then the states."""
        header = self.states.new_zeros(1, self.states.shape[1])
        header[0, : len(self.tiles)] = torch.tensor(
            self.tiles, dtype=header.dtype, device=header.device
        )
        return torch.cat([header, self.states])

    @classmethod
    def unpacked(cls, packed: Tensor, num_images: int) -> "EncodedImages":
        """Undo `packed`; the number of images is known from the prompt."""
        return cls([int(n) for n in packed[0, :num_images].tolist()], packed[1:])


class ImageEncoder(nn.Module):
    """The vision tower and its projection to the text model's width."""

    def __init__(self, config: EncoderDecoderMllamaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_model = MllamaVisionModel._from_config(config.vision, dtype=dtype)
        pass_by_position(self.vision_model)
        self.multi_modal_projector = nn.Linear(
            config.vision.vision_output_dim, config.text.hidden_size, dtype=dtype
        )
        self.max_tiles: int = config.vision.max_num_tiles
        self.tokens = config.tokens_per_tile

    def forward(
        self, pixel_values: Tensor, aspect_ratio_ids: Tensor, num_tiles: Tensor, num_images: Tensor
    ) -> Iterator[EncodedImages]:
        """One output a request.

        pixel_values: (tiles, 3, S, S), the real tiles of all images of all requests.
        aspect_ratio_ids, num_tiles: (images,). num_images: (requests,).
        """
        tiles = num_tiles.flatten().tolist()
        images = self._encode(pixel_values, aspect_ratio_ids.flatten(), tiles)
        start = 0
        for count in num_images.flatten().tolist():
            mine = slice(start, start + count)
            yield _real_tiles_first(images[mine], tiles[mine])
            start += count

    def _encode(self, pixel_values: Tensor, aspect_ratio_ids: Tensor, tiles: list[int]) -> Tensor:
        """(images, max tiles, tokens, hidden)."""
        at_once = max(1, TOKENS_AT_ONCE // (self.max_tiles * self.tokens))
        outputs = []
        for start in range(0, len(tiles), at_once):
            part = tiles[start : start + at_once]
            first = sum(tiles[:start])
            padded, real = self._padded(pixel_values[first : first + sum(part)], part)
            ids = aspect_ratio_ids[start : start + at_once]
            seen = self.vision_model(padded[:, None], ids[:, None], real[:, None]).last_hidden_state
            outputs.append(self.multi_modal_projector(seen[:, 0]))
        return torch.cat(outputs)

    def _padded(self, pixel_values: Tensor, tiles: list[int]) -> tuple[Tensor, Tensor]:
        """All tiles of each image, (images, max tiles, 3, S, S), and which of them are real."""
        real = torch.zeros(len(tiles), self.max_tiles, dtype=torch.bool)
        for image, count in enumerate(tiles):
            real[image, :count] = True
        real = real.to(pixel_values.device)
        padded = pixel_values.new_zeros(*real.shape, *pixel_values.shape[1:])
        padded[real] = pixel_values
        return padded, real.long()


def _real_tiles_first(images: Tensor, tiles: list[int]) -> EncodedImages:
    """images: (images, max tiles, tokens, hidden) of one request."""
    real = [image[:count] for image, count in zip(images, tiles)]
    padding = [image[count:] for image, count in zip(images, tiles)]
    return EncodedImages(tiles, torch.cat([*real, *padding]).flatten(0, 1))
