"""Which engine a run gets, and where it retrieves."""

import ctypes
import gc
import hashlib
import logging
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from mmrag_batch import factory, machine
from mmrag_batch.cli.app import app
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.retrieval import sessions
from mmrag_batch.settings import DEMO_BUNDLE, DeviceName, PredictSettings

SETTINGS = PredictSettings(input=Path("in.csv"), output=Path("out.csv"))


@pytest.mark.parametrize(
    ("engine", "device", "installed", "gpu", "expected"),
    [
        ("auto", "auto", True, True, "vllm"),
        ("auto", "cuda", True, True, "vllm"),
        ("auto", "cpu", True, True, "transformers"),
        ("auto", "auto", True, False, "transformers"),
        ("auto", "auto", False, True, "transformers"),
        ("vllm", "cpu", False, False, "vllm"),
        ("transformers", "auto", True, True, "transformers"),
    ],
)
def test_auto_is_vllm_where_there_is_a_gpu_for_it(
    engine: str,
    device: DeviceName,
    installed: bool,
    gpu: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factory, "find_spec", lambda _: "vllm" if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert factory._engine_name(replace(SETTINGS, engine=engine, device=device)) == expected


def test_stages_can_be_opened_in_another_process_where_they_share_their_images(
    tmp_path: Path,
) -> None:
    (tmp_path / "note.png").write_bytes(b"no picture")
    settings = replace(SETTINGS, engine="scripted", image_root=tmp_path)
    stages = factory.find_stages(settings, factory.load_bundle(settings))
    loaders = [one.args[2] for one in pickle.loads(pickle.dumps(stages))]
    assert loaders[0] is loaders[1]
    assert loaders[0].digest("note.png") == hashlib.sha256(b"no picture").hexdigest()


def test_a_stage_is_not_opened_where_its_bundle_is_another_one(tmp_path: Path) -> None:
    settings = replace(SETTINGS, engine="scripted", bundle=tmp_path / "bundle")
    shutil.copytree(DEMO_BUNDLE, settings.bundle)
    retrieval, generation = factory.find_stages(settings, factory.load_bundle(settings))
    manifest = settings.bundle / "bundle.json"
    manifest.write_text(manifest.read_text().replace("demo", "other"))
    for stage in (retrieval, generation):
        with pytest.raises(MissingError, match="is not the bundle here that it was"), stage():
            pass
    manifest.unlink()
    with pytest.raises(MissingError, match="is no bundle"), retrieval():
        pass


@pytest.mark.parametrize("engine", ["auto", "transformers", "chat"])
def test_several_gpus_and_an_engine_that_uses_one_are_refused(engine: str) -> None:
    settings = replace(SETTINGS, engine=engine, device="cpu", gpus=2)
    bundle, refusal = factory.load_bundle(SETTINGS), r"--gpus 2: only --engine vllm uses several"
    with pytest.raises(ConfigError, match=refusal):
        factory.find_stages(settings, bundle)
    _, generation = factory.find_stages(replace(settings, ray="auto"), bundle)  # has other devices
    with pytest.raises(ConfigError, match=refusal), generation():
        pass


class Driver:
    """What libcuda answers: an error (0 is none) and a number of devices."""

    def __init__(self, error: int, devices: int) -> None:
        self._error, self._devices = error, devices

    def cuInit(self, _: int) -> int:  # noqa: N802  # its name
        return self._error

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._devices
        return 0


@pytest.mark.parametrize(
    ("driver", "providers", "asked", "device"),
    [
        (Driver(0, 1), ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "cuda"),
        (Driver(0, 0), ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "cpu"),
        (Driver(100, 0), ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "cpu"),
        (None, ["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", "cpu"),
        (Driver(0, 1), ["CPUExecutionProvider"], "auto", "cpu"),
        (None, ["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda", "cuda"),
        (Driver(0, 1), ["CUDAExecutionProvider", "CPUExecutionProvider"], "cpu", "cpu"),
    ],
)
def test_m03_retrieval_is_on_a_gpu_where_one_is_there(
    driver: Driver | None,
    providers: list[str],
    asked: DeviceName,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def open_library(_: str) -> Driver:
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with caplog.at_level("INFO", "mmrag_batch"):
        assert sessions.find_device(asked) == device
    fell_back = asked == "auto" and device == "cpu" and len(providers) > 1
    assert caplog.messages == ["There is no GPU here: retrieval runs on the CPU."] * fell_back


def test_m03_auto_works_on_a_login_node_that_has_the_gpu_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(sessions, "has_cuda", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table, output = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text('question_text,answer_choices\nWhat is red?,"[""a cube"", ""a ball""]"\n')
    words = ["predict", str(table), str(output), "--engine", "auto", "--device", "auto"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(output.read_text().splitlines()) == 2


def test_cores_are_parted_between_retrieval_and_the_engine() -> None:
    assert 1 <= machine.retrieval_cores() <= max(1, machine.cores() // 2)


def test_a_part_that_is_loaded_is_told_and_the_collector_rests_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "mmrag_batch")
    with factory._loading("retriever"):
        assert not gc.isenabled()
    assert gc.isenabled()
    (message,) = caplog.messages
    assert re.fullmatch(r"The retriever is ready, after [0-9.]+ s\.", message)
    caplog.clear()
    with pytest.raises(MemoryError), factory._loading("generator"):
        raise MemoryError
    assert gc.isenabled()
    assert not caplog.messages


def test_a_collector_that_somebody_stopped_stays_stopped() -> None:
    gc.disable()
    try:
        with factory._loading("retriever"):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
