from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmrag_batch.errors import MissingError
from mmrag_batch.train.imagebind import (
    ImageBind,
    ImageBindConfig,
    LogitScale,
    load_encoders,
    save_encoders,
)


@pytest.fixture(scope="module")
def tiny(tiny_encoders_dir: Path) -> ImageBind:
    return load_encoders(tiny_encoders_dir)


@pytest.fixture(scope="module")
def huge() -> ImageBind:
    """The published size, without memory for it."""
    with torch.device("meta"):
        return ImageBind(ImageBindConfig())


def parameters(model: ImageBind, modality: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if f".{modality}." in f".{name}")


def test_the_default_is_as_large_as_the_published_model(huge: ImageBind) -> None:
    assert round(parameters(huge, "vision") / 1e6, 1) == 632.8
    assert round(parameters(huge, "text") / 1e6, 1) == 354.0


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("modality_preprocessors.vision.cls_token", (1, 1, 1280)),
        ("modality_preprocessors.vision.rgbt_stem.proj.1.weight", (1280, 3, 2, 14, 14)),
        ("modality_preprocessors.vision.pos_embedding_helper.pos_embed", (1, 257, 1280)),
        ("modality_preprocessors.text.pos_embed", (1, 77, 1024)),
        ("modality_preprocessors.text.mask", (77, 77)),
        ("modality_preprocessors.text.token_embedding.weight", (49408, 1024)),
        ("modality_trunks.vision.pre_transformer_layer.0.weight", (1280,)),
        ("modality_trunks.vision.blocks.31.attn.in_proj_weight", (3840, 1280)),
        ("modality_trunks.vision.blocks.31.attn.out_proj.bias", (1280,)),
        ("modality_trunks.text.blocks.23.mlp.fc1.weight", (4096, 1024)),
        ("modality_trunks.text.blocks.23.norm_2.bias", (1024,)),
        ("modality_heads.vision.0.weight", (1280,)),
        ("modality_heads.vision.2.weight", (1024, 1280)),
        ("modality_heads.text.proj.0.weight", (1024,)),
        ("modality_heads.text.proj.1.weight", (1024, 1024)),
        ("modality_postprocessors.text.1.log_logit_scale", ()),
    ],
)
def test_tensors_have_the_published_names_and_shapes(
    huge: ImageBind, name: str, shape: tuple[int, ...]
) -> None:
    assert tuple(huge.state_dict()[name].shape) == shape


def test_an_image_is_seen_as_two_equal_frames(tiny: ImageBind) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stem = tiny.modality_preprocessors["vision"].get_submodule("rgbt_stem")
    video = stem.get_submodule("proj.1")
    assert isinstance(video, nn.Conv3d)
    expected = video(torch.stack([pixels, pixels], dim=2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(pixels), expected, rtol=1e-4, atol=1e-5)


def test_embeddings_are_unit_vectors(tiny: ImageBind) -> None:
    images = tiny.encode_image(torch.randn(3, 3, 32, 32))
    texts = tiny.encode_text(text(tiny, 5, 9, 4))
    assert (images.shape, texts.shape) == ((3, 24), (1, 24))
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(1))


def text(model: ImageBind, *ids: int, padding: int = 0) -> Tensor:
    """(1, L): the ids, the end token, and zeros."""
    return torch.tensor([[*ids, model.config.vocabulary - 1, *[0] * padding]])


def test_padding_changes_no_text(tiny: ImageBind) -> None:
    bare, padded = tiny.encode_text(text(tiny, 5, 9)), tiny.encode_text(text(tiny, 5, 9, padding=9))
    torch.testing.assert_close(bare, padded)


def test_every_token_and_its_place_changes_a_text(tiny: ImageBind) -> None:
    asked = tiny.encode_text(text(tiny, 5, 9, 4))
    for ids in [(6, 9, 4), (5, 9, 3), (9, 5, 4)]:
        assert (tiny.encode_text(text(tiny, *ids)) - asked).abs().max() > 1e-3


def test_what_follows_the_end_token_changes_nothing(tiny: ImageBind) -> None:
    tokens = text(tiny, 5, 9, padding=3)
    other = tokens.clone()
    other[:, -1] = 7
    torch.testing.assert_close(tiny.encode_text(tokens), tiny.encode_text(other))


def test_the_scale_stays_below_a_hundred() -> None:
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    nn.init.constant_(scale.log_logit_scale, 9.0)
    assert scale().item() == 100


def test_saved_encoders_load_as_they_were(tiny: ImageBind, tmp_path: Path) -> None:
    save_encoders(tiny, tmp_path)
    loaded = load_encoders(tmp_path)
    assert loaded.config == tiny.config
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny.state_dict().items())


def test_missing_encoders_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json is missing"):
        load_encoders(tmp_path)
