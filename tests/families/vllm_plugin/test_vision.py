"""The encoder against transformers' vision tower, and what it keeps of the images seen last."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.families.mllama.vllm_plugin.config import EncoderDecoderMllamaConfig
from mmrag_batch.families.mllama.vllm_plugin.shared_images import SharedImages
from mmrag_batch.families.mllama.vllm_plugin.vision import ImageEncoder

WIDE = Image.linear_gradient("L").resize((90, 30)).convert("RGB")  # 3 tiles
SMALL = Image.radial_gradient("L").resize((30, 30)).convert("RGB")  # 1 tile


@pytest.fixture
def model(random_generator_dir: Path) -> Any:
    return load_model(random_generator_dir, dtype=torch.float32).model


@pytest.fixture
def encoder(random_generator_dir: Path, model: Any) -> ImageEncoder:
    config = EncoderDecoderMllamaConfig.from_pretrained(random_generator_dir)
    encoder = ImageEncoder(config, torch.float32).eval()
    encoder.vision_model.load_state_dict(model.vision_model.state_dict())
    encoder.multi_modal_projector.load_state_dict(model.multi_modal_projector.state_dict())
    return encoder


def inputs(directory: Path, requests: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
    """What `processing.py` makes of requests; the hash of an image is its width."""
    images: Any = [image for request in requests for image in request]
    processed = load_image_processor(directory)([images], return_tensors="pt")
    tiles = processed["num_tiles"][0]
    pixels = processed["pixel_values"][0]
    return {
        "pixel_values": torch.cat([p[:n] for p, n in zip(pixels, tiles)]),
        "aspect_ratio_ids": processed["aspect_ratio_ids"][0],
        "num_tiles": torch.tensor(tiles),
        "num_images": torch.tensor([[len(request)] for request in requests]),
        "image_hashes": torch.tensor([image.width for image in images]),
    }


@torch.inference_mode()
def test_states_are_transformers_with_the_real_tiles_first(
    random_generator_dir: Path, model: Any, encoder: ImageEncoder
) -> None:
    first, second = encoder(**inputs(random_generator_dir, [[WIDE, SMALL], [WIDE]]))
    images: Any = [[WIDE, SMALL]]
    processed = load_image_processor(random_generator_dir)(images, return_tensors="pt")
    del processed["num_tiles"]
    theirs = model.multi_modal_projector(model.vision_model(**processed).last_hidden_state)[0]
    wide, small = theirs
    expected = torch.cat([wide[:3], small[:1], wide[3:], small[1:]]).flatten(0, 1)
    torch.testing.assert_close(first.states, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(second.states, wide.flatten(0, 1), atol=1e-5, rtol=0)
    assert (first.tiles, second.tiles) == ([3, 1], [3])


@torch.inference_mode()
def test_an_image_goes_through_the_tower_once(
    random_generator_dir: Path, encoder: ImageEncoder
) -> None:
    sizes: list[int] = []
    encoder.vision_model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    (alone,) = encoder(**inputs(random_generator_dir, [[WIDE]]))
    shared, both = encoder(**inputs(random_generator_dir, [[WIDE], [SMALL, WIDE]]))
    assert sizes == [1, 1]  # the second time for the small one only
    assert torch.equal(shared.states, alone.states)
    assert both.tiles == [1, 3]


def test_the_image_used_longest_ago_makes_room() -> None:
    shared = SharedImages((128, 1 << 20), torch.float32)  # so large that one fits
    assert len(shared.states) == 1
    few = SharedImages((2, 3), torch.float32)
    few.states = torch.nn.Buffer(torch.zeros(2, 2, 3), persistent=False)
    for key in (1, 2):
        few.put(key, torch.full((2, 3), key))
    assert few.get(1) is not None
    few.put(3, torch.full((2, 3), 3))
    assert few.get(2) is None
    for key in (1, 3):
        states = few.get(key)
        assert states is not None and (states == key).all()
