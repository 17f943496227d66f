from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrag_batch.errors import MissingError
from mmrag_batch.retrieval.preprocess import open_tokenizer, preprocess_image, tokenize

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.mark.parametrize("size", [(32, 32), (100, 40), (40, 100), (1, 1), (500, 1), (33, 32)])
def test_images_of_any_shape_become_square(size: tuple[int, int]) -> None:
    pixels = preprocess_image(Image.new("RGB", size, "red"), 32, ZERO, ONE)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert pixels.min(axis=(1, 2)).tolist() == [1, 0, 0]
    assert pixels.max(axis=(1, 2)).tolist() == [1, 0, 0]


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_is_what_is_seen(wide: bool) -> None:
    image = Image.new("RGB", (96, 32) if wide else (32, 96), "blue")
    image.paste("red", (32, 0, 64, 32) if wide else (0, 32, 32, 64))
    pixels = preprocess_image(image, 32, ZERO, ONE)
    assert pixels.mean(axis=(1, 2)).tolist() == [1, 0, 0]


def test_values_are_normalised_by_channel() -> None:
    image = Image.new("RGB", (8, 8), (255, 51, 0))
    pixels = preprocess_image(image, 8, (0.5, 0.2, 0.1), (0.5, 0.1, 0.2))
    assert pixels[:, 3, 3].tolist() == pytest.approx([1.0, 0.0, -0.5])


def test_texts_are_padded_with_zeros_behind_their_end_token(tiny_retriever_dir: Path) -> None:
    tokenizer = open_tokenizer(tiny_retriever_dir / "tokenizer.json", 16)
    start, end = (tokenizer.token_to_id(f"<|{side}oftext|>") for side in ("start", "end"))
    ids = tokenize(tokenizer, ["a red cube", ""])
    assert ids.dtype == np.int64
    assert ids[0, 0] == start
    assert ids[0, -1] == end == ids.max()
    assert ids[1].tolist() == [start, end] + [0] * (ids.shape[1] - 2)


def test_a_long_text_is_cut_and_keeps_its_end_token(tiny_retriever_dir: Path) -> None:
    tokenizer = open_tokenizer(tiny_retriever_dir / "tokenizer.json", 16)
    ids = tokenize(tokenizer, ["what does it cost? " * 50])
    assert ids.shape == (1, 16)
    assert ids[0, -1] == tokenizer.token_to_id("<|endoftext|>")


def test_the_name_of_a_special_token_is_plain_text(tiny_retriever_dir: Path) -> None:
    tokenizer = open_tokenizer(tiny_retriever_dir / "tokenizer.json", 16)
    end = tokenizer.token_to_id("<|endoftext|>")
    assert (tokenize(tokenizer, ["a <|endoftext|> b"]) == end).sum() == 1


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"tokenizer\.json is missing"):
        open_tokenizer(tmp_path / "tokenizer.json", 16)


def test_the_long_side_is_rounded_down_as_published() -> None:
    image = Image.effect_noise((50, 33), 80).convert("RGB")  # 50 * 32 / 33 = 48.48
    resized = image.resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    expected = np.asarray(resized, np.float32).transpose(2, 0, 1) / 255
    pixels = preprocess_image(image, 32, (0, 0, 0), (1, 1, 1))
    np.testing.assert_allclose(pixels, expected, atol=1e-7)
