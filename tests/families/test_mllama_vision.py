"""The vision tower without a mask is transformers' own with one."""

from copy import deepcopy

import pytest
import torch
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from mmrag_batch.families.mllama.vision import prepare_vision

SIDE, TILES = 64, 4


@pytest.fixture(scope="module")
def plain() -> MllamaVisionModel:
    """transformers' tower, whose mask matters: 65 tokens a tile, and 7 of padding."""
    config = MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        attention_heads=2,
        num_hidden_layers=3,
        num_global_layers=2,
        image_size=SIDE,
        patch_size=8,
        vision_output_dim=3 * 32,
        intermediate_layers_indices=[0, 2],
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = MllamaVisionModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def prepared(plain: MllamaVisionModel) -> MllamaVisionModel:
    model = deepcopy(plain)
    prepare_vision(model)
    return model


def inputs(tiles: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of so many tiles; what is in the padding counts too."""
    torch.manual_seed(len(tiles))
    pixels = torch.randn(len(tiles), 1, TILES, 3, SIDE, SIDE)
    ratios = torch.tensor(tiles)[:, None]
    real = torch.tensor([[[int(tile < count) for tile in range(TILES)]] for count in tiles])
    return pixels, ratios, real


@pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated")  # by transformers' own encoder
@pytest.mark.parametrize("tiles", [[1], [4, 4], [3, 1, 4, 2, 4, 1]])
def test_states_and_gradients_are_those_of_transformers(
    plain: MllamaVisionModel, prepared: MllamaVisionModel, tiles: list[int]
) -> None:
    found = []
    for model in (plain, prepared):
        model.zero_grad()
        states = model(*inputs(tiles)).last_hidden_state
        states.square().mean().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        found.append((states, gradients))
    (expected, their_gradients), (states, gradients) = found
    torch.testing.assert_close(states, expected, atol=5e-5, rtol=0)
    assert gradients.keys() == their_gradients.keys()  # so are the names in a checkpoint
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-4, rtol=1e-3)


def test_no_attention_gets_a_mask(
    prepared: MllamaVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, shapes = torch.nn.functional.scaled_dot_product_attention, []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
        shapes.append((len(q), q.shape[2], k.shape[2]))
        return attend(q, k, v, scale=scale)

    monkeypatch.setattr("mmrag_batch.families.mllama.vision.scaled_dot_product_attention", watched)
    prepared(*inputs([4, 1, 4]))
    tokens, tile = TILES * 72, 65
    once = [(1, tile, tokens), (1, tokens - tile, tile)]
    once += [(2, TILES * tile, tokens), (2, TILES * 7, TILES * tile)]
    assert shapes == 5 * once
