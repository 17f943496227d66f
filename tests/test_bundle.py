"""Opening a bundle: whole, unchanged, of this version, and with nothing in it that could run."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrag_batch.bundle import (
    BundleManifest,
    GeneratorSpec,
    RetrieverSpec,
    hash_files,
    open_bundle,
    write_manifest,
)
from mmrag_batch.errors import ConfigError, DeniedError, MissingError

WEIGHTS = "generator/model.safetensors"


def manifest_of(path: Path) -> BundleManifest:
    return BundleManifest(
        retriever=RetrieverSpec("tiny", "Apache-2.0", 8, 8, (0, 0, 0), (1, 1, 1), 8),
        generator=GeneratorSpec("Apache-2.0", "letter", 2, 1, 64),
        files=hash_files(path),
        parity={},
        trained_on="nothing",
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of which only the manifest and the hashes matter."""
    path = tmp_path / "bundle"
    for name in ("retriever/image_encoder.onnx", WEIGHTS):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / "retriever/image_encoder.onnx").write_bytes(b"a graph")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (path / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    (path / "generator/config.json").write_text('{"model_type": "mllama"}')
    write_manifest(path, manifest_of(path))
    return path


def test_a_bundle_that_is_what_its_manifest_says_opens(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest == manifest_of(bundle)
    assert opened.generator_dir == bundle / "generator"


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.pt2", "x.pkl"])
def test_h01_a_pickle_is_refused(bundle: Path, name: str, listed: bool) -> None:
    (bundle / "generator" / name).write_bytes(b"\x80\x04.")
    if listed:
        write_manifest(bundle, manifest_of(bundle))
    with pytest.raises(DeniedError, match="may hold a pickle") as caught:
        open_bundle(bundle)
    assert caught.value.exit_code == 77


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_h02_a_model_that_asks_for_code_of_its_own_is_refused(bundle: Path, file: str) -> None:
    (bundle / "generator" / file).write_text('{"auto_map": {"AutoModel": "model.Model"}}')
    write_manifest(bundle, manifest_of(bundle))
    with pytest.raises(DeniedError, match=r"auto_map\), which `predict` never runs") as caught:
        open_bundle(bundle)
    assert caught.value.exit_code == 77


def test_h02_code_in_a_bundle_is_refused(bundle: Path) -> None:
    (bundle / "generator/modeling_mllama.py").write_text("print('hello')")
    with pytest.raises(DeniedError, match="is code; a bundle holds data only"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    ["generator/adapter_config.json", "generator/adapter/x", "retriever/weights.data", ".hidden"],
)
def test_l01_a_file_that_is_not_listed_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("{}")
    with pytest.raises(DeniedError, match=f"{name} is not listed in bundle.json") as caught:
        open_bundle(bundle)
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("name", ["generator/x_config.json", "generator/config.json"])
def test_l01_a_pipe_in_a_bundle_is_not_read(bundle: Path, name: str) -> None:
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)
    with pytest.raises((DeniedError, MissingError), match=name):
        open_bundle(bundle)


def test_l01_a_link_out_of_the_bundle_is_refused(bundle: Path) -> None:
    (bundle / "elsewhere").symlink_to(bundle.parent)
    with pytest.raises(DeniedError, match="elsewhere is not listed"):
        open_bundle(bundle)


def damage(kind: str) -> Callable[[bytes], bytes]:
    return {
        "truncated": lambda data: data[:-4],
        "header length": lambda data: struct.pack("<Q", 2**60) + data[8:],
        "one bit": lambda data: data[:-1] + b"\1",
    }[kind]


@pytest.mark.parametrize("kind", ["truncated", "header length", "one bit"])
def test_h04_damaged_weights_are_found_by_their_hash(bundle: Path, kind: str) -> None:
    file = bundle / WEIGHTS
    file.write_bytes(damage(kind)(file.read_bytes()))
    with pytest.raises(MissingError, match=f"{WEIGHTS} differs from bundle.json") as caught:
        open_bundle(bundle)
    assert caught.value.exit_code == 66


def test_h04_a_file_that_is_not_there_is_named(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    with pytest.raises(MissingError, match=f"{WEIGHTS} is missing"):
        open_bundle(bundle)


def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path) -> None:
    (bundle.parent / "secret").write_text("x")
    values = json.loads((bundle / "bundle.json").read_text())
    values["files"]["../secret"] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(DeniedError, match="leaves the bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "has format 9; this version reads"),
        ({"template_version": 9}, "prompt template 9"),
        ({"files": None, "generator": {}}, "lacks or has a wrong field"),
    ],
)
def test_a_manifest_of_another_version_is_refused(
    bundle: Path, change: dict[str, object], words: str
) -> None:
    values = json.loads((bundle / "bundle.json").read_text()) | change
    (bundle / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=words):
        open_bundle(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"is no bundle.*mmrag-batch export"):
        open_bundle(tmp_path)
