import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.export.onnx_retriever import export_encoders
from mmrag_batch.retrieval.encoder import Encoder

TEXTS = ["A red cube.", "", "what does the RED cube cost? " * 9, "a"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {k: v for k, v in VISION.items() if "size" not in k or k == "hidden_size"} | {
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}


def train_tokenizer(start: bool) -> Tokenizer:
    """Lower-cased bytes in pairs; padding is id 0, the end token has the highest id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>")]
    shape = "<bos> $A <eos>" if start else "$A <eos>"
    tokenizer.post_processor = processors.TemplateProcessing(shape, None, ends)
    return tokenizer


def save(directory: Path, model: Any, processor: Any, tokenizer: Tokenizer) -> None:
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="right",
    ).save_pretrained(directory)


def make_clip(directory: Path) -> None:
    tokenizer = train_tokenizer(start=True)
    end = tokenizer.get_vocab_size() - 1
    text = {**TEXT, "vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    save(directory, CLIPModel(config), processor, tokenizer)


def make_siglip(directory: Path) -> None:
    tokenizer = train_tokenizer(start=False)
    text = {**TEXT, "vocab_size": tokenizer.get_vocab_size(), "projection_size": 32}
    processor = SiglipImageProcessorPil(
        size={"height": 32, "width": 32}, resample=Image.Resampling.BILINEAR
    )
    config = SiglipConfig(text_config=text, vision_config=VISION)
    save(directory, SiglipModel(config), processor, tokenizer)


MAKERS: dict[str, Callable[[Path], None]] = {"clip": make_clip, "siglip": make_siglip}
Exported = tuple[str, Path, Path]


@pytest.fixture(scope="module", params=sorted(MAKERS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small checkpoint with random weights, and its graphs."""
    checkpoint = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    MAKERS[request.param](checkpoint)
    out = tmp_path_factory.mktemp("graphs")
    export_encoders(checkpoint, out)
    return request.param, checkpoint, out


def open_exported(out: Path) -> Encoder:
    return Encoder(out, read_retriever_spec(out), device="cpu", threads=1)


@pytest.mark.parametrize("size", [(32, 32), (61, 40), (33, 90), (20, 15)])
def test_pictures_are_embedded_as_transformers_does(
    exported: Exported, size: tuple[int, int]
) -> None:
    kind, checkpoint, out = exported
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    kinds = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}
    processor: Any = kinds[kind].from_pretrained(checkpoint)
    inputs = processor(images=[image], return_tensors="pt")
    encoder = open_exported(out)
    torch.testing.assert_close(
        torch.from_numpy(encoder.pixels(image)), inputs["pixel_values"][0], atol=1e-5, rtol=0
    )
    model = AutoModel.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        expected = F.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
    found = torch.from_numpy(encoder.encode_images([image]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_texts_are_embedded_as_transformers_does(exported: Exported) -> None:
    """Each as its model was trained: CLIP's as they are, SigLIP's padded to the full length."""
    kind, checkpoint, out = exported
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint).eval()
    padding = {"clip": True, "siglip": "max_length"}[kind]
    tokens = tokenizer(
        TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        features = model.get_text_features(input_ids=tokens).pooler_output
    found = torch.from_numpy(open_exported(out).encode_texts(TEXTS))
    torch.testing.assert_close(found, F.normalize(features, dim=-1), atol=1e-5, rtol=0)
    assert (found[0] - found[3]).abs().max() > 1e-3


def test_the_spec_says_what_the_processor_does(exported: Exported) -> None:
    kind, _, out = exported
    spec = read_retriever_spec(out)
    expected = {
        "clip": ("transformers", "bicubic", False, 24),
        "siglip": ("stretch", "bilinear", True, 32),
    }[kind]
    assert (spec.framing, spec.resample, spec.pad_texts, spec.embedding_size) == expected
    assert "model card" in spec.licence


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    make_clip(tmp_path)
    return tmp_path


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": {"height": 24, "width": 24}}, "cut to 24"),
        ({"do_center_crop": False}, "not known"),
        ({"resample": 1}, "lanczos"),
        ({"resample": 99}, "99"),
        ({"image_mean": None, "image_std": None}, "image_mean"),
    ],
)
def test_pictures_prepared_in_unknown_ways_are_refused(
    clip: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    edit(clip / "preprocessor_config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        export_encoders(clip, tmp_path / "out")


def test_another_kind_of_checkpoint_is_refused(clip: Path, tmp_path: Path) -> None:
    edit(clip / "config.json", model_type="siglip2")
    with pytest.raises(ConfigError, match="NaFlex"):
        export_encoders(clip, tmp_path / "out")


@pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(clip: Path, tmp_path: Path, name: str) -> None:
    (clip / name).unlink()
    with pytest.raises(MissingError, match=name):
        export_encoders(clip, tmp_path / "out")
