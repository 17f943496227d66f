import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from mmrag_batch import doctor, machine
from mmrag_batch.cli.app import app
from mmrag_batch.doctor import Check, check, show

ABSENT = Requirement("no-such-thing>=3")
PIP = machine.pip()


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Requirement]]:
    """What our extras ask for, to be changed."""
    changed = dict(machine.extras())
    monkeypatch.setattr(machine, "extras", lambda: changed)
    monkeypatch.setattr(machine, "gpus", list)
    return changed


def by_name() -> dict[str, Check]:
    return {item.name: item for item in check()}


def test_here_predict_runs_and_training_does(extras: dict[str, list[Requirement]]) -> None:
    found = by_name()
    for name in ("predict", "evaluate", "Parquet tables", "train and export", "train in 4 bits"):
        assert found[name].works, found[name]
    assert not found["predict, on a GPU"].works
    assert "nvidia-smi" in found["predict, on a GPU"].detail


def test_what_is_missing_comes_with_the_line_to_type(extras: dict[str, list[Requirement]]) -> None:
    extras["parquet"] = [ABSENT]
    assert by_name()["Parquet tables"] == Check(
        "Parquet tables", False, "missing: no-such-thing", f"{PIP} install 'no-such-thing>=3'"
    )
    extras["gpu"] = [Requirement("vllm>=999")]
    vllm = by_name()["predict, with vLLM"]
    assert not vllm.works
    assert vllm.remedy == f"{PIP} install 'vllm>=999'"


def test_packages_that_see_no_gpu_are_named(
    extras: dict[str, list[Requirement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("An H100", 2**36, "570")])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = by_name()["predict, on a GPU"]
    assert not found.works
    assert "not by torch 2" in found.detail
    assert found.remedy.startswith(f"{PIP} install --force-reinstall 'onnxruntime-gpu>=")
    monkeypatch.setattr(doctor, "_cpu_only_packages", lambda: iter(()))
    assert by_name()["predict, on a GPU"].detail == "1 of An H100"


def test_int8_needs_a_processor_that_has_it(
    extras: dict[str, list[Requirement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"sse2"}))
    assert not by_name()["int8 encoders"].works
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"avx_vnni"}))
    assert by_name()["int8 encoders"].works


def test_two_builds_of_onnx_runtime_are_told_apart_from_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("H100", 80 << 30, "580")])
    monkeypatch.setattr(machine, "version", lambda name: "1.31.1")
    on_gpu = by_name()["predict, on a GPU"]
    assert not on_gpu.works
    assert on_gpu.remedy.startswith(f"{PIP} uninstall -y onnxruntime onnxruntime-gpu;")


def test_a_remedy_has_a_line_of_its_own() -> None:
    lines = list(show([Check("predict", False, "missing: torch", "pip install x")]))
    assert lines[0].split() == ["no", "predict", "missing:", "torch"]
    assert lines[1].strip() == "pip install x"


def test_doctor_exits_with_0_where_predict_runs_and_else_with_69(
    extras: dict[str, list[Requirement]],
) -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "python" in done.stdout
    extras["cpu"] = [ABSENT]
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 69
    assert f"{PIP} install 'no-such-thing>=3'\n" in done.stdout
