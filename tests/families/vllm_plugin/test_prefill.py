"""The slices of a prefill against the dense mask of transformers' processor."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from mmrag_batch.families.mllama.vllm_plugin.prefill import Prefill, plan
from mmrag_batch.families.mllama.vllm_plugin.vision import EncodedImages

MAX_TILES = 4
TOKENS = 3
IMAGE = 9
ROWS = st.lists(st.sampled_from([1, IMAGE]), min_size=1, max_size=12).filter(lambda r: IMAGE in r)


def encoded(images: int, first: int, dice: random.Random) -> tuple[EncodedImages, list[Tensor]]:
    """An encoder output whose states are their own numbers; and, of each image, those numbers."""
    tiles = [dice.randint(1, MAX_TILES) for _ in range(images)]
    numbers = first + torch.arange(images * MAX_TILES * TOKENS)
    real = list(torch.split(numbers[: sum(tiles) * TOKENS], [n * TOKENS for n in tiles]))
    return EncodedImages(tiles, numbers[:, None]), real


def attended(prefill: Prefill, requests: list[tuple[int, int]]) -> dict[int, set[int]]:
    """The states to which each row attends. requests: where the rows of each begin and end."""
    found = {
        row: set(prefill.states[keys].flatten().tolist())
        for (start, end), keys in zip(requests, prefill.cached)
        for row in range(start, end)
    }
    for segment in prefill.segments:
        keys = set(prefill.states[segment.keys].flatten().tolist())
        found |= dict.fromkeys(range(segment.rows.start, segment.rows.stop), keys)
    return found


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_each_row_attends_to_what_the_dense_mask_lets_it(
    prompts: list[list[int]], dice: random.Random
) -> None:
    start, state = 0, 0
    planned, outputs, requests, expected = [], [], [], {}
    without_mlp: set[int] = set()
    for prompt in prompts:
        places = [place for place, token in enumerate(prompt) if token == IMAGE]
        output, real = encoded(len(places), state, dice)
        mask = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(prompt, IMAGE)],
            num_tiles=[list(output.tiles)],
            max_num_tiles=MAX_TILES,
            length=len(prompt),
        )[0]
        for row, images in enumerate(mask):
            seen = [set(real[image].tolist()) for image, on in enumerate(images) if on.any()]
            everything = set(output.states.flatten().tolist())
            expected[start + row] = set.union(*seen) if seen else everything
            without_mlp |= set() if seen else {start + row}
        planned.append((start, places))
        outputs.append(output)
        requests.append((start, start + len(prompt)))
        start += len(prompt) + 1  # a row of a request that decodes lies between
        state += len(output.states)

    prefill = plan(planned, outputs, TOKENS)
    assert attended(prefill, requests) == expected
    assert {row for rows in prefill.without_mlp for row in range(rows.start, rows.stop)} == (
        without_mlp
    )


def test_an_encoder_output_is_unpacked_as_it_was_packed() -> None:
    images = EncodedImages([3, 1], torch.randn(2 * MAX_TILES * TOKENS, 8))
    packed = images.packed()
    [header] = EncodedImages.headers([packed])
    unpacked = EncodedImages.unpacked(packed, [int(n) for n in header[:2]])
    assert unpacked.tiles == [3, 1]
    assert torch.equal(unpacked.states, images.states)
