"""Encoder states of the images seen last, so that rows that share an image share its encoding.

vLLM keeps no encoder outputs of encoder-decoders from one request for another. An image of the 11B
costs as much as a thousand tokens of text, and rows of a table often have documents in common.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

MAX_BYTES = 512 << 20
"""Ten images of the 11B."""
MAX_IMAGES = 256
"""More would be lists to keep rather than time to save."""


class SharedImages(nn.Module):
    """A fixed number of places, the least recently used given to the next image.

    All memory is taken at the start, where vLLM counts it with the weights and leaves it out of
    the KV cache's.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        bytes_each = torch.Size(shape).numel() * dtype.itemsize
        places = max(1, min(MAX_IMAGES, MAX_BYTES // bytes_each))
        self.states = nn.Buffer(torch.zeros(places, *shape, dtype=dtype), persistent=False)
        self._place: OrderedDict[int, int] = OrderedDict()

    def get(self, key: int) -> Tensor | None:
        """The states of the image with this content hash. The next `put` may overwrite them."""
        if key not in self._place:
            return None
        self._place.move_to_end(key)
        return self.states[self._place[key]]

    def put(self, key: int, states: Tensor) -> None:
        """Remember an image that is not among them."""
        full = len(self._place) == len(self.states)
        place = self._place.popitem(last=False)[1] if full else len(self._place)
        self.states[place] = states
        self._place[key] = place
