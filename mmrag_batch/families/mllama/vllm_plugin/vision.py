"""Tiles -> encoder outputs: the vision tower, its projector, and the form in which vLLM hands an
output from the encoder to the decoder.

The tower is transformers' own module, whole on each tensor-parallel rank. It has 0.9 of the 11
billion weights and runs once a request, and it has exactly the quirks of the reference: padding
tiles and the padding patches of each tile are only partly masked and do change the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from mmrag_batch.families.mllama.vision import prepare_vision
from mmrag_batch.families.mllama.vllm_plugin.budget import MAX_IMAGES, TOKENS_AT_ONCE
from mmrag_batch.families.mllama.vllm_plugin.config import EncoderDecoderMllamaConfig
from mmrag_batch.families.mllama.vllm_plugin.shared_images import SharedImages


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
        tiles = self.tiles[:MAX_IMAGES]  # there are more only while vLLM measures memory
        header[0, : len(tiles)] = torch.tensor(tiles, dtype=header.dtype, device=header.device)
        return torch.cat([header, self.states])

    @staticmethod
    def headers(packed: Sequence[Tensor]) -> Tensor:
        """(requests, most images of a request): the tiles that the header rows hold."""
        return torch.stack([output[0, :MAX_IMAGES] for output in packed])

    @classmethod
    def unpacked(cls, packed: Tensor, tiles: Sequence[int]) -> "EncodedImages":
        """Undo `packed`; the tiles are those of its header."""
        return cls(tiles, packed[1:])


class ImageEncoder(nn.Module):
    """The vision tower and its projection to the text model's width."""

    def __init__(self, config: EncoderDecoderMllamaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_model = MllamaVisionModel._from_config(config.vision, dtype=dtype)
        prepare_vision(self.vision_model)
        self.multi_modal_projector = nn.Linear(
            config.vision.vision_output_dim, config.text.hidden_size, dtype=dtype
        )
        self.max_tiles: int = config.vision.max_num_tiles
        self.tokens = config.tokens_per_tile
        self.shared = SharedImages((self.max_tiles, self.tokens, config.text.hidden_size), dtype)

    def forward(
        self,
        pixel_values: Tensor,
        aspect_ratio_ids: Tensor,
        num_tiles: Tensor,
        num_images: Tensor,
        image_hashes: Tensor,
    ) -> list[EncodedImages]:
        """One output a request.

        pixel_values: (tiles, 3, S, S), the real tiles of all images of all requests.
        aspect_ratio_ids, num_tiles, image_hashes: (images,). num_images: (requests,).
        """
        tiles, keys = num_tiles.flatten().tolist(), image_hashes.flatten().tolist()
        states: dict[int, Tensor] = {}
        new: dict[int, int] = {}
        for image, key in enumerate(keys):
            shared = self.shared.get(key)
            if shared is not None:
                states[key] = shared
            else:
                new.setdefault(key, image)
        ends = list(accumulate(tiles, initial=0))
        at_once = max(1, TOKENS_AT_ONCE // (self.max_tiles * self.tokens))
        for first in range(0, len(new), at_once):
            keys_now = list(new)[first : first + at_once]
            chosen = [new[key] for key in keys_now]
            pixels = torch.cat([pixel_values[ends[i] : ends[i + 1]] for i in chosen])
            ids = aspect_ratio_ids.flatten()[chosen]
            states |= zip(keys_now, self._encode(pixels, ids, [tiles[i] for i in chosen]))

        outputs, start = [], 0
        for count in num_images.flatten().tolist():
            mine = slice(start, start + count)
            outputs.append(_real_tiles_first([states[key] for key in keys[mine]], tiles[mine]))
            start += count
        for key in new:  # only now: it may overwrite what the outputs were made of
            self.shared.put(key, states[key])
        return outputs

    def _encode(self, pixel_values: Tensor, aspect_ratio_ids: Tensor, tiles: list[int]) -> Tensor:
        """(images, max tiles, tokens, hidden)."""
        padded, real = self._padded(pixel_values, tiles)
        seen = self.vision_model(padded[:, None], aspect_ratio_ids[:, None], real[:, None])
        return self.multi_modal_projector(seen.last_hidden_state[:, 0])

    def _padded(self, pixel_values: Tensor, tiles: list[int]) -> tuple[Tensor, Tensor]:
        """All tiles of each image, (images, max tiles, 3, S, S), and which of them are real.

        The host knows both, and waits for no GPU: a mask as an index would have it count.
        """
        real = [tile < count for count in tiles for tile in range(self.max_tiles)]
        shape, device = (len(tiles), self.max_tiles), pixel_values.device
        places = torch.tensor([place for place, is_real in enumerate(real) if is_real])
        padded = pixel_values.new_zeros(len(real), *pixel_values.shape[1:])
        padded[places.to(device, non_blocking=True)] = pixel_values
        is_real = torch.tensor(real).long().view(shape).to(device, non_blocking=True)
        return padded.unflatten(0, shape), is_real


def _real_tiles_first(images: Sequence[Tensor], tiles: list[int]) -> EncodedImages:
    """images: (max tiles, tokens, hidden) of each image of one request."""
    real = [image[:count] for image, count in zip(images, tiles)]
    padding = [image[count:] for image, count in zip(images, tiles)]
    return EncodedImages(tiles, torch.cat([*real, *padding]).flatten(0, 1))
