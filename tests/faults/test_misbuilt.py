"""Bundles that are what their manifest says, and broken all the same: `predict` says so."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrag_batch.bundle import MANIFEST, open_bundle, read_manifest
from mmrag_batch.cli.app import app
from mmrag_batch.errors import ConfigError, DeniedError
from mmrag_batch.settings import DEMO_BUNDLE
from tests.faults.misbuilt import DEEP, Change, be, cut, misbuild, put, tensors

TOWER = be((DEMO_BUNDLE / "retriever/question_tower.onnx").read_bytes())
WEIGHTS = "generator/model.safetensors"
WITHOUT_A_MODEL: list[tuple[str, Change, str]] = [
    ("generator/config.json", cut, "JSONDecodeError"),
    ("generator/config.json", put("architectures", value=[7]), "TypeError"),
    ("generator/tokenizer.json", be(DEEP), "generator cannot be loaded"),
    ("generator/tokenizer.json", put("model", "vocab", value={}), "cannot be loaded"),
    ("generator/tokenizer_config.json", be(b"[]"), "AttributeError"),
    ("generator/chat_template.jinja", be(b"{% for %}"), "not a valid template"),
    ("generator/chat_template.jinja", be(b"\xff"), "UnicodeDecodeError"),
    ("retriever/tokenizer.json", put("model", value=None), "retriever cannot be loaded"),
    ("retriever/text_encoder.onnx", cut, "cannot be loaded; export it again"),
    ("retriever/image_encoder.onnx", TOWER, "cannot be run with pixels"),
    ("retriever/document_tower.onnx", be(b""), "cannot be loaded; export it again"),
    (MANIFEST, put("retriever", "image_size", value=32), "cannot be run with pixels"),
    (MANIFEST, put("retriever", "embedding_size", value=64), r"It gives \(\d, 128\), not"),
]
WITH_A_MODEL: list[tuple[str, Change, str]] = [
    (WEIGHTS, cut, "SafetensorError"),
    (WEIGHTS, lambda data: b"\xff" * 8 + data[8:], "SafetensorError"),
    (WEIGHTS, tensors(rename="something"), "lacks 1 tensors, such as"),
    (WEIGHTS, tensors(shape=[1]), "SafetensorError"),
    ("generator/config.json", put("text_config", "hidden_size", value=64), "cannot be loaded"),
    ("generator/config.json", put("vision_config", value=None), "cannot be loaded"),
    ("generator/preprocessor_config.json", cut, "generator cannot be loaded"),
    ("generator/preprocessor_config.json", put("max_image_tiles", value=9), "other tiles"),
    ("generator/generation_config.json", cut, "holds no JSON object"),
]


def predict(folder: Path, bundle: Path, engine: str) -> tuple[int, str]:
    """The exit code and what was said; an exception that is none of ours is raised."""
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    (folder / "in.csv").write_text('question_text,documents\nWhat?,"[""a"", ""a.png""]"\n')
    paths = [str(folder / "in.csv"), str(folder / "out.csv"), "--bundle", str(bundle)]
    done = CliRunner().invoke(app, ["predict", *paths, "--engine", engine, "--device", "cpu"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("engine", "name", "change", "told"),
    [
        *(("scripted", *case) for case in WITHOUT_A_MODEL),
        *(("transformers", *case) for case in WITH_A_MODEL),
    ],
)
def test_l03_a_part_that_is_hashed_and_broken_is_told(
    tmp_path: Path, engine: str, name: str, change: Change, told: str
) -> None:
    code, said = predict(tmp_path, misbuild(tmp_path, name, change), engine)
    assert code in (66, 78), said
    assert re.search(told, " ".join(said.split())), said


WRONG: list[tuple[tuple[str, ...], Any]] = [
    (("files",), []),
    (("files",), {"a": 1}),
    (("notice",), None),
    (("retriever",), "x"),
    (("generator",), []),
    (("retriever", "embedding_size"), -1),
    (("retriever", "image_size"), 10**9),
    (("retriever", "image_size"), True),
    (("retriever", "image_mean"), [1]),
    (("retriever", "image_std"), [0, 0, 0]),
    (("retriever", "image_std"), ["a", "b", "c"]),
    (("retriever", "context_length"), 0),
    (("retriever", "temperature"), float("nan")),
    (("retriever", "precision"), "int3"),
    (("retriever", "resample"), [1]),
    (("generator", "scoring"), {}),
    (("generator", "top_k"), -1),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_l03_a_manifest_with_a_wrong_field_is_told(
    tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    change = put(*path, value=value)
    (tmp_path / MANIFEST).write_bytes(change((DEMO_BUNDLE / MANIFEST).read_bytes()))
    with pytest.raises(ConfigError, match=f"(?i){path[-1]}.* is "):
        read_manifest(tmp_path)


def test_l03_a_manifest_that_lists_no_name_of_a_file_is_told(tmp_path: Path) -> None:
    bundle = misbuild(tmp_path, MANIFEST, put("files", "\0", value="x"))
    with pytest.raises(DeniedError, match="leaves the bundle"):
        open_bundle(bundle)
