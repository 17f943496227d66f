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
from mmrag_batch.export.processors import read_image_settings
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import preprocess_image

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


def clip_processor() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def siglip_processor() -> Any:
    return SiglipImageProcessorPil(
        size={"height": 32, "width": 32}, resample=Image.Resampling.BILINEAR
    )


PROCESSORS: dict[str, Any] = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_clip(directory: Path) -> None:
    tokenizer = train_tokenizer(start=True)
    end = tokenizer.get_vocab_size() - 1
    text = {**TEXT, "vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    save(directory, CLIPModel(config), clip_processor(), tokenizer)


def make_siglip(directory: Path) -> None:
    tokenizer = train_tokenizer(start=False)
    text = {**TEXT, "vocab_size": tokenizer.get_vocab_size(), "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    save(directory, SiglipModel(config), siglip_processor(), tokenizer)


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
    image = noise(size)
    processor = PROCESSORS[kind].from_pretrained(checkpoint)
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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clip.json` and `siglip.json`: their processors' settings, for pictures of 32 pixels."""
    folder = tmp_path_factory.mktemp("processors")
    for kind, processor in (("clip", clip_processor()), ("siglip", siglip_processor())):
        (folder / f"{kind}.json").write_text(processor.to_json_string())
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    make_clip(tmp_path)
    return tmp_path


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SQUARE = {"height": 32, "width": 32}
REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("clip", {"crop_size": {"height": 24, "width": 24}}, "crop_size is .*both must be equal"),
    ("clip", {"crop_size": {"shortest_edge": 32}}, "crop_size is"),
    ("clip", {"crop_size": {"height": 32, "width": 24}}, "crop_size is"),
    ("clip", {"do_center_crop": False}, "do_center_crop is false"),
    ("clip", {"do_resize": False}, "do_resize is false"),
    ("clip", {"size": {"shortest_edge": 32, "longest_edge": 64}}, "size is .*`shortest_edge`"),
    ("clip", {"size": 48, "crop_size": 48}, "size is 48, and the model takes 32 pixels"),
    ("clip", {"resample": 99}, r"resample is 99; it can be 3 \(bicubic\)"),
    ("clip", {"rescale_factor": 0}, "rescale_factor is 0"),
    ("clip", {"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\]"),
    ("clip", {"image_std": 0}, "image_std is 0"),
    ("clip", {"do_pad": True, "pad_size": SQUARE}, "do_pad is True, which is not known here"),
    ("clip", {"do_flip_channel_order": True}, "do_flip_channel_order is True"),
    ("clip", {"image_processor_type": "BitImageProcessor"}, "CLIPImageProcessor can be honoured"),
    ("siglip", {"size": {"height": 32, "width": 48}}, "size is"),
    ("siglip", {"size": 32}, "do_center_crop is false"),
    ("siglip", {"max_num_patches": 256}, "max_num_patches is 256"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_a_field_that_cannot_be_honoured_is_named(
    prepared: Path, tmp_path: Path, kind: str, changes: dict[str, object], message: str
) -> None:
    values = json.loads((prepared / f"{kind}.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ConfigError, match=message):
        read_image_settings(tmp_path, kind, 32)


HONOURED: list[tuple[str, dict[str, object]]] = [
    ("clip", {}),
    ("clip", {"do_rescale": False}),
    ("clip", {"rescale_factor": 1 / 127.5}),
    ("clip", {"do_normalize": False}),
    ("clip", {"do_rescale": False, "do_normalize": False}),
    ("clip", {"image_mean": 0.5, "image_std": 0.5}),
    ("clip", {"image_mean": None, "do_rescale": None, "do_center_crop": None}),
    ("clip", {"do_convert_rgb": False, "do_pad": False, "data_format": "channels_first"}),
    ("clip", {"resample": 0}),
    ("clip", {"resample": 1}),
    ("clip", {"resample": 2}),
    ("clip", {"resample": 4}),
    ("clip", {"resample": 5}),
    ("clip", {"size": 32, "crop_size": 32}),
    ("clip", {"size": [32, 32], "crop_size": [32, 32]}),
    ("clip", {"size": SQUARE, "do_center_crop": False}),
    ("siglip", {"do_rescale": False, "resample": 1}),
    ("siglip", {"size": 32, "default_to_square": True}),
    ("siglip", {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}),
]


@pytest.mark.parametrize(("kind", "changes"), HONOURED)
@pytest.mark.parametrize("size", [(61, 40), (33, 90), (20, 15)])
def test_other_fields_do_what_they_do_in_transformers(
    prepared: Path, tmp_path: Path, kind: str, changes: dict[str, object], size: tuple[int, int]
) -> None:
    values = json.loads((prepared / f"{kind}.json").read_text())
    stated = {name: value for name, value in {**values, **changes}.items() if value is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    image = noise(size)
    processor = PROCESSORS[kind].from_pretrained(tmp_path)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"][0].float()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, **changes}))
    settings = read_image_settings(tmp_path, kind, 32)
    found = torch.from_numpy(
        preprocess_image(
            image,
            settings["image_size"],
            settings["image_mean"],
            settings["image_std"],
            settings["framing"],
            settings["resample"],
        )
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_field_06_the_layout_of_transformers_5_is_read_as_well(
    prepared: Path, tmp_path: Path
) -> None:
    values = json.loads((prepared / "clip.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    expected = read_image_settings(tmp_path, "clip", 32)
    (tmp_path / "preprocessor_config.json").unlink()
    nested = {"image_processor": values, "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_image_settings(tmp_path, "clip", 32) == expected


def test_another_kind_of_checkpoint_is_refused(clip: Path, tmp_path: Path) -> None:
    edit(clip / "config.json", model_type="siglip2")
    with pytest.raises(ConfigError, match="NaFlex"):
        export_encoders(clip, tmp_path / "out")


@pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(clip: Path, tmp_path: Path, name: str) -> None:
    (clip / name).unlink()
    with pytest.raises(MissingError, match=name):
        export_encoders(clip, tmp_path / "out")
