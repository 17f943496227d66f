from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, MllamaProcessor

from mmrag_batch.families.mllama.inputs import collate, load_image_processor
from mmrag_batch.families.mllama.loading import load_model

WIDE = Image.linear_gradient("L").resize((90, 20)).convert("RGB")  # 3 tiles
SMALL = Image.radial_gradient("L").resize((30, 30)).convert("RGB")  # 1 tile
SQUARE = Image.new("RGB", (64, 64), "red")  # 4 tiles
TEXTS = ["A thing.", "Question: What does the red cube cost? Evidence: 12 coins."]


class Inputs:
    """Batches of the tiny generator's own tokens."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.image_processor = load_image_processor(directory)
        self.image_id: int = self.tokenizer.get_vocab()["<|image|>"]

    def tokens(self, text: str, images: int) -> list[int]:
        bos = "<|begin_of_text|>"
        ids: list[int] = self.tokenizer(bos + "<|image|>" * images + text)["input_ids"]
        return ids

    def batch(self, rows: list[tuple[str, list[Image.Image]]]) -> dict[str, torch.Tensor]:
        token_ids = [self.tokens(text, len(images)) for text, images in rows]
        pictures = [images for _, images in rows]
        pad_id = self.tokenizer.pad_token_id
        return collate(token_ids, pictures, self.image_processor, pad_id, self.image_id)


@pytest.fixture
def inputs(tiny_generator_dir: Path) -> Inputs:
    return Inputs(tiny_generator_dir)


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([WIDE], [SMALL]), ([SMALL, WIDE], [SQUARE, SMALL])],
    ids=["text", "one image", "two images"],
)
@torch.inference_mode()
def test_a_left_padded_row_has_the_logits_it_has_alone(
    tiny_generator_dir: Path, inputs: Inputs, first: list[Image.Image], second: list[Image.Image]
) -> None:
    model = load_model(tiny_generator_dir, dtype=torch.float32)
    rows = list(zip(TEXTS, [first, second]))
    together = model(**inputs.batch(rows)).logits
    for row, logits in zip(rows, together):
        alone = model(**inputs.batch([row])).logits[0]
        torch.testing.assert_close(logits[-len(alone) :], alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_picture_matters(tiny_generator_dir: Path, inputs: Inputs) -> None:
    model = load_model(tiny_generator_dir, dtype=torch.float32)
    logits = model(**inputs.batch([(TEXTS[0], [WIDE]), (TEXTS[0], [SQUARE])])).logits[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("images", [[WIDE], [SMALL, WIDE, SQUARE]])
def test_a_row_has_the_inputs_that_transformers_makes(
    inputs: Inputs, images: list[Image.Image]
) -> None:
    processor: Any = MllamaProcessor(inputs.image_processor, inputs.tokenizer)  # type: ignore[no-untyped-call]
    prompt = "<|begin_of_text|>" + "<|image|>" * len(images) + TEXTS[1]
    theirs = processor(images=[images], text=[prompt], return_tensors="pt")
    ours = inputs.batch([(TEXTS[1], images)])
    assert set(ours) == set(theirs) | {"position_ids"}
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_padding_shifts_every_mask(inputs: Inputs) -> None:
    batch = inputs.batch([("A", [SMALL]), (TEXTS[1], [WIDE])])
    padding = int((batch["attention_mask"][0] == 0).sum())
    assert padding > 0
    assert batch["position_ids"][0, padding:].tolist() == list(range(3))
    # The short row sees its one tile from the image token on, which follows the start token.
    seen = batch["cross_attention_mask"][0, :, 0]
    assert seen[: padding + 1].sum() == 0
    assert seen[padding + 1 :].tolist() == [[1, 0, 0, 0]] * 2


def test_rows_with_other_numbers_of_images_are_refused(inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="equally many images"):
        inputs.batch([(TEXTS[0], []), (TEXTS[1], [SMALL])])


def test_an_image_without_a_token_is_refused(inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="image tokens"):
        collate([inputs.tokens("A", 0)], [[SMALL]], inputs.image_processor, 0, inputs.image_id)
