import gzip
import html
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mmrag_batch.errors import ConfigError, DeniedError, MissingError
from mmrag_batch.export.encoders import open_encoders
from mmrag_batch.export.imagebind import (
    VOCABULARY,
    find_vocabulary,
    load_published,
    published_tokenizer,
)
from mmrag_batch.retrieval.preprocess import (
    clean_text,
    open_tokenizer,
    preprocess_image,
    tokenize,
)
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig

SMALL = ImageBindConfig(
    image_width=48,
    image_blocks=3,
    image_heads=16,
    text_width=32,
    text_blocks=2,
    text_heads=16,
    embedding_size=24,
)
TEXTS = [
    "A photo of a cat.",
    "",
    "  Tabs\tand\nlines,   and CAPITALS!  ",
    "It's the dog's; they're here, we'll see, I'd say, don't",
    "in 2024 the LX-10 lifts 10,5 t (± 3 %)",
    "naïve café, coöperate, Ελληνικά, русский, 日本語, 한국어",
    "emoji 🎈🦊 and ﷽",
    "\u201ccurly\u201d quotes and it\u2019s \u2018fine\u2019",
    "\ufb01ne \ufb02oor, e\ufb03cient \ufb06op \u0132ssel",
    "\uff26\uff35\uff2c\uff2c\uff0d\uff37\uff29\uff24\uff34\uff28 \uff11\uff12 \uff76\uff85",
    "con\x00trol\x07 \x1b[1mbold\x1b[0m \x85 next\u2028line\ufeff zero\u200bwidth soft\u00adhyphen",
    "cafe\u0301 \u212b \u00b5m \u2126 \u1e9e \u0130stanbul \u03a3\u0391\u03a3",
    "caf\u00c3\u00a9 \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d na\u00c3\u00afve",
    "fish &amp; chips &lt;b&gt; &amp;lt;i&amp;gt; &#39;x&#39; <p>&rsquo;&eacute;</p> &bogus;",
    "10\u00a0000 m\u00b2 \u2153 \u2460 \u2122 \u2026 \u2014 \u2013",
    "a_b__c --- ... !!! #hash @at http://example.org/a?b=c&d=e",
    "word " * 200,
]


def small_published(published: ModuleType) -> Any:
    """The published model, small, with other weights than it starts out with: none is 0 or 1."""
    torch.manual_seed(0)
    model = published.ImageBindModel(
        vision_embed_dim=SMALL.image_width,
        vision_num_blocks=SMALL.image_blocks,
        vision_num_heads=SMALL.image_heads,
        text_embed_dim=SMALL.text_width,
        text_num_blocks=SMALL.text_blocks,
        text_num_heads=SMALL.text_heads,
        out_embed_dim=SMALL.embedding_size,
        audio_embed_dim=24,
        audio_num_blocks=1,
        depth_embed_dim=24,
        depth_num_blocks=1,
        thermal_embed_dim=24,
        thermal_num_blocks=1,
        imu_embed_dim=24,
        imu_num_blocks=1,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def theirs(published: ModuleType) -> Any:
    return small_published(published)


@pytest.fixture(scope="module")
def checkpoint(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("published") / "imagebind.pth"
    torch.save(theirs.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> ImageBind:
    return load_published(checkpoint, SMALL)


def shapes(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, tensor in module.state_dict().items():
        yield name, tuple(tensor.shape)


def test_all_names_and_shapes_of_huge_are_the_published_ones(
    published: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its drop rates come from tensors, which must have values.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        theirs = dict(shapes(published.imagebind_huge()))
        ours = dict(shapes(ImageBind(ImageBindConfig())))
    seen = {
        name: shape for name, shape in theirs.items() if name.split(".")[1] in {"vision", "text"}
    }
    assert ours == seen
    assert len(ours) > 600


@torch.inference_mode()
def test_images_are_embedded_as_the_published_code_does(theirs: Any, ours: ImageBind) -> None:
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = theirs({"vision": pixels})["vision"]
    torch.testing.assert_close(ours.encode_image(pixels), expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_texts_are_embedded_as_the_published_code_does(
    theirs: Any, ours: ImageBind, published: ModuleType
) -> None:
    tokens = published_tokens(published, TEXTS)
    expected = theirs({"text": tokens})["text"]
    found = ours.encode_text(tokens)
    torch.testing.assert_close(found * ours.logit_scale(), expected, atol=1e-4, rtol=0)
    unit = nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(found, unit, atol=1e-5, rtol=0)
    trimmed = tokens[:1, : int(tokens[0].argmax()) + 1]
    torch.testing.assert_close(ours.encode_text(trimmed), unit[:1], atol=1e-5, rtol=0)


def published_tokens(published: ModuleType, texts: list[str]) -> Tensor:
    """(B, 77), by the published tokenizer and vocabulary."""
    code = sys.modules[published.TextPreprocessor.__module__]
    theirs = code.SimpleTokenizer(bpe_path=str(find_vocabulary(Path("none"))))
    return torch.stack([theirs(text) for text in texts])


def our_tokens(directory: Path, texts: list[str]) -> Tensor:
    """(B, 77), as `predict` finds them."""
    published_tokenizer(find_vocabulary(directory), 77).save(str(directory / "tokenizer.json"))
    cleaned = [clean_text(text) for text in [*texts, "word " * 99]]
    ids = tokenize(open_tokenizer(directory / "tokenizer.json", 77), cleaned)
    return torch.from_numpy(ids[:-1])  # the last one only makes them as long as can be


def test_texts_become_the_published_tokens(published: ModuleType, tmp_path: Path) -> None:
    assert our_tokens(tmp_path, TEXTS).tolist() == published_tokens(published, TEXTS).tolist()


def test_many_texts_become_the_published_tokens(published: ModuleType, tmp_path: Path) -> None:
    """Python's own documentation: prose, code, tables and signs of all kinds."""
    lines = sorted(
        {
            line
            for topic in (dict, str, int, html, np.ndarray, torch.nn.Conv2d)
            for line in (topic.__doc__ or "").splitlines()
        }
        | {str.__doc__ or ""}
    )
    assert len(lines) > 40
    assert our_tokens(tmp_path, lines).tolist() == published_tokens(published, lines).tolist()


def test_published_encoders_say_that_their_texts_are_cleaned(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(load_published, config=SMALL)
    monkeypatch.setattr("mmrag_batch.export.encoders.load_published", small)
    assert open_encoders(checkpoint, find_vocabulary(checkpoint)).spec.clean_texts


def test_names_of_special_tokens_in_a_text_are_plain_text(tmp_path: Path) -> None:
    (ids,) = our_tokens(tmp_path, ["a <|endoftext|> b"]).tolist()
    assert ids.count(49407) == 1
    assert ids[ids.index(49407) + 1 :] == [0] * (76 - ids.index(49407))


@pytest.mark.parametrize("size", [(224, 224), (640, 427), (301, 900), (57, 31)])
def test_pictures_are_prepared_as_published(size: tuple[int, int]) -> None:
    """The published transforms, step by step, in torch: resize, centre crop, scale, normalise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    config = ImageBindConfig()
    short, long = sorted(size)
    resized = [224 if side == short else int(224 * long / short) for side in size]
    picture = np.asarray(image.resize((resized[0], resized[1]), Image.Resampling.BICUBIC))
    left, top = (round((side - 224) / 2.0) for side in resized)
    cut = torch.from_numpy(picture[top : top + 224, left : left + 224].copy()).permute(2, 0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.image_mean, config.image_std))
    expected = (cut.float() / 255 - mean) / std
    found = preprocess_image(image, 224, config.image_mean, config.image_std)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-6, rtol=0)


def test_safetensors_hold_the_same(theirs: Any, ours: ImageBind, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: t.clone() for name, t in theirs.state_dict().items()}, file)
    loaded = load_published(file, SMALL).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in ours.state_dict().items())


def test_half_precision_is_loaded_as_single(theirs: Any, tmp_path: Path) -> None:
    torch.save({k: v.half() for k, v in theirs.state_dict().items()}, tmp_path / "half.pth")
    loaded = load_published(tmp_path / "half.pth", SMALL)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_tensors_that_do_not_fit_are_named(theirs: Any, tmp_path: Path) -> None:
    tensors = theirs.state_dict()
    gone = "modality_heads.text.proj.1.weight"
    wrong = "modality_preprocessors.vision.cls_token"
    del tensors[gone]
    tensors["modality_heads.text.bias"] = torch.zeros(1)
    tensors[wrong] = torch.zeros(1, 1, 7)
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(ConfigError) as caught:
        load_published(tmp_path / "other.pth", SMALL)
    for problem in (
        "3 tensors",
        f"{gone} is missing",
        "modality_heads.text.bias is unknown",
        f"{wrong} has shape (1, 1, 7), not (1, 1, 48)",
    ):
        assert problem in str(caught.value)


class Harmful:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('ran')",))


def test_h01_a_pickle_of_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    torch.save({"a.b": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(DeniedError, match="more than tensors"):
        load_published(tmp_path / "harmful.pth")


@pytest.mark.parametrize("name", ["torn.pth", "torn.safetensors"])
def test_a_damaged_checkpoint_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises((MissingError, DeniedError), match=r"torn\."):
        load_published(tmp_path / name)
    with pytest.raises(MissingError, match="There is no file"):
        load_published(tmp_path / "none.pth")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="no tensors by name"):
        load_published(tmp_path / "list.pth")


def test_the_vocabulary_beside_the_checkpoint_comes_first(tmp_path: Path) -> None:
    installed = find_vocabulary(tmp_path / "imagebind.pth")
    assert installed.parent.name == "bpe"
    (tmp_path / VOCABULARY).write_bytes(installed.read_bytes())
    assert find_vocabulary(tmp_path / "imagebind.pth") == tmp_path / VOCABULARY


def test_a_missing_vocabulary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrag_batch.export.imagebind.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="--vocabulary"):
        find_vocabulary(tmp_path / "imagebind.pth")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"#version\na b\n", mtime=0)])
def test_another_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bpe.gz").write_bytes(content)
    with pytest.raises(MissingError, match=r"bpe\.gz"):
        published_tokenizer(tmp_path / "bpe.gz", 77)
