"""What a request must be before the engine sees it.

What is wrong with it there would end the engine, and every request with it.
"""

from collections.abc import Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError

from mmrag_batch.families.mllama.vllm_plugin.config import EncoderDecoderMllamaConfig

MISSHAPEN = "The images are not as Mllama's processor makes them"


def last_group_size(prompt: Sequence[int], image_token_id: int, num_images: int) -> int:
    """How many images stand next to each other at the last place where any does.

    Raises VLLMValidationError where the prompt's image tokens are not as many as the images.
    """
    positions = [place for place, token in enumerate(prompt) if token == image_token_id]
    if len(positions) != num_images:
        raise VLLMValidationError(
            f"The prompt has {len(positions)} image tokens but {num_images} images come with it."
        )
    size = 1
    while size < num_images and positions[-size - 1] == positions[-size] - 1:
        size += 1
    return size


def check_present(images: Sequence[Any]) -> None:
    """Raise VLLMValidationError where there are none, or one has a name and no content: the images
    of a request are one item here, so that vLLM remembers none by its name."""
    if not images or any(image is None for image in images):
        raise VLLMValidationError(
            "The request names images that do not come with it. Send each image itself, also where "
            "it has a uuid, and no empty list of images."
        )


def check_images(config: EncoderDecoderMllamaConfig, decoder_input: Any, ours: bool) -> None:
    """Raise VLLMValidationError for a prompt whose images are not those of its image tokens, or not
    as the processor makes them: what a client has prepared may hold anything."""
    prompt = decoder_input.get("prompt_token_ids")
    items = decoder_input["mm_kwargs"].get("image", []) if "mm_kwargs" in decoder_input else []
    if not ours and "mm_kwargs" in decoder_input:
        check_present(items)
    if prompt is None or None in items:  # embeddings; or an item that was checked and is cached
        return
    try:
        tiles = [int(n) for item in items for n in item["num_tiles"].data.flatten()]
        count = sum(int(item["num_images"].data) for item in items)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VLLMValidationError(f"{MISSHAPEN}: {error}.") from error
    last_group = last_group_size(prompt, config.image_token_index, count)
    if items and not _is_whole(config, decoder_input, tiles, last_group):
        raise VLLMValidationError(f"{MISSHAPEN}.")


def _is_whole(
    config: EncoderDecoderMllamaConfig, decoder_input: Any, tiles: list[int], last_group: int
) -> bool:
    """Whether the one item of a request has the shape that its `tiles` say."""
    items, places = decoder_input["mm_kwargs"]["image"], decoder_input["mm_placeholders"]["image"]
    if len(items) != 1 or len(places) != 1:
        return False
    names = ("pixel_values", "aspect_ratio_ids", "image_hashes", "num_images")
    try:
        pixels, ratios, hashes, count = (items[0][name].data for name in names)
    except KeyError:
        return False
    return (
        len(tiles) == int(count) == ratios.numel() == hashes.numel()
        and 1 <= min(tiles) <= max(tiles) <= config.vision.max_num_tiles
        and 1 <= int(ratios.min()) <= int(ratios.max()) <= config.vision.max_aspect_ratio_id
        and pixels.shape == (sum(tiles), 3, *[config.vision.image_size] * 2)
        and places[0].length == sum(tiles[-last_group:]) * config.tokens_per_tile
    )
