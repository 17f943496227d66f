import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import ConfigError
from mmrag_batch.parts import (
    DEMO,
    ORIGIN,
    check_base,
    check_encoders,
    encoders_identity,
    find_part,
    hash_model,
    read_origin,
    read_spec,
    write_origin,
)
from mmrag_batch.settings import DEMO_BUNDLE


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """A retriever's folder, of which only names, bytes and the spec matter."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    for name in ("image_encoder.onnx", "text_encoder.onnx", "tokenizer.json"):
        (folder / name).write_text(name)
    spec = read_spec(DEMO_BUNDLE / "retriever")
    (folder / "retriever.json").write_text(json.dumps({**spec_values(spec), "weights": ""}))
    return folder


def spec_values(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in type(spec).__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    folder = tmp_path / "towers"
    folder.mkdir()
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint, of which only names and bytes matter."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("model-1.safetensors", "model-2.safetensors", "config.json", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_a_config_may_name_a_bundle_for_a_part_of_it(tmp_path: Path) -> None:
    assert find_part(DEMO, "generator") == DEMO_BUNDLE / "generator"
    assert find_part(DEMO_BUNDLE, "retriever") == DEMO_BUNDLE / "retriever"
    assert find_part(tmp_path, "retriever") == tmp_path
    assert read_spec(find_part(DEMO, "retriever")).encoder == "imagebind-demo"


def test_a_folder_of_ones_own_named_demo_is_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    DEMO.mkdir()
    assert find_part(DEMO, "generator") == DEMO


def test_l04_towers_of_other_graphs_are_refused(graphs: Path, towers: Path) -> None:
    spec = read_retriever_spec(graphs)
    write_origin(towers, encoders=encoders_identity(graphs, spec))
    check_encoders(towers, graphs, spec)
    (graphs / "question_tower.onnx").write_text("theirs")  # lies there and is no encoder
    check_encoders(towers, graphs, replace(spec, temperature=20.0))
    (graphs / "text_encoder.onnx").write_text("of the same size")
    with pytest.raises(ConfigError, match=rf"other encoders .*`encoders: {graphs}`"):
        check_encoders(towers, graphs, spec)


def test_l04_towers_fit_their_encoders_in_any_precision(graphs: Path, towers: Path) -> None:
    spec = replace(read_retriever_spec(graphs), weights="5c")
    write_origin(towers, encoders=encoders_identity(graphs, spec))
    (graphs / "text_encoder.onnx").write_text("in eight bits")
    check_encoders(towers, graphs, replace(spec, precision="int8"))
    with pytest.raises(ConfigError, match="other encoders"):
        check_encoders(towers, graphs, replace(spec, weights="6d"))


def test_l04_an_adapter_of_another_base_is_refused_by_the_files_that_differ(
    base: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_origin(adapter, base={"path": str(base), "files": hash_model(base)})
    (base / "README.md").write_text("says more")
    check_base(adapter, shutil.copytree(base, tmp_path / "moved"))
    (base / "model-2.safetensors").write_text("of the same size.")
    with pytest.raises(ConfigError, match=rf"model-2\.safetensors differs \(1 of 3.*rm {adapter}"):
        check_base(adapter, base)


def test_parts_that_do_not_say_what_they_stand_on_are_taken_with_a_warning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_base(tmp_path, base)
    assert f"{tmp_path} does not say which base it was trained on" in caplog.text
    write_origin(tmp_path, encoders={})
    assert read_origin(tmp_path, "base") is None
    assert (tmp_path / ORIGIN).is_file()
