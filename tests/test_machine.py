import os
import stat
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmrag_batch import machine


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands, the only ones there are."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, prints: str, *, code: int = 0) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\ncase \"$1\" in *) printf '%b' '{prints}'; exit {code};; esac\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_gpus_are_those_that_the_driver_lists(command: Path) -> None:
    assert machine.gpus() == []
    install(command, "nvidia-smi", "NVIDIA H100, 80GB, 81559, 570.86\\nNVIDIA L4, 23034, 570.86\\n")
    first, second = machine.gpus()
    assert (first.name, first.driver) == ("NVIDIA H100, 80GB", "570.86")
    assert second == machine.Gpu("NVIDIA L4", 23034 * 2**20, "570.86")


def test_a_driver_that_fails_is_no_gpu(command: Path) -> None:
    install(command, "nvidia-smi", "NVIDIA-SMI has failed, 1, 2", code=9)
    assert machine.gpus() == []


def test_slurm_is_there_where_sbatch_is(command: Path) -> None:
    assert machine.slurm() == ""
    install(command, "sbatch", "slurm 25.05.1\\n")
    assert machine.slurm() == "25.05.1"
    install(command, "sbatch", "", code=1)
    assert machine.slurm() == "sbatch does not answer"


def test_memory_is_what_the_container_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text("MemTotal:  2048 kB\nMemFree:  1 kB\nMemAvailable:  1024 kB\n")
    monkeypatch.setattr(machine, "MEMORY_INFO", info)
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    assert machine.memory() == (2 * 2**20, 2**20)
    limit.write_text("max\n")
    assert machine.memory() == (2 * 2**20, 2**20)
    limit.write_text("1000\n")
    assert machine.memory() == (1000, 1000)
    info.unlink()
    assert machine.memory() == (1000, 1000)


@pytest.mark.parametrize("word", ["flags\t\t", "Features\t"])
def test_flags_are_those_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPU_INFO", file)
    assert machine.cpu_flags() == frozenset()
    file.write_text(f"model name\t: x\n{word}: fpu avx512_vnni\nbugs\t: none\n")
    assert machine.cpu_flags() == {"fpu", "avx512_vnni"}
    assert machine.cpu_flags() & machine.INT8


def test_cores_are_those_of_this_process() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)


def test_an_extra_asks_for_what_the_extras_in_it_do() -> None:
    extras = machine.extras()
    names = {item.name for item in extras["train-4bit"]}
    assert {"bitsandbytes", "peft", "torch"} <= names
    assert "mmrag-batch" not in names
    assert {item.name for item in extras["cpu"]} == {"onnxruntime", "torch", "transformers"}


def test_extras_that_belong_together_ask_for_one_onnx_runtime() -> None:
    extras = machine.extras()
    builds = {
        name: {item.name for item in items if item.name.startswith("onnxruntime")}
        for name, items in extras.items()
    }
    builds.pop("dev")
    wanted = {name: found for name, found in builds.items() if found}
    assert wanted == {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}


def test_what_is_lacking_is_named_with_the_version_that_is_here() -> None:
    here = version("numpy")
    wanted = [Requirement("numpy>=1"), Requirement("numpy>=999"), Requirement("no-such-thing")]
    assert machine.unmet_requirements(wanted) == [f"numpy>=999 (here {here})", "no-such-thing"]
    assert machine.installed_version(wanted[0]) == here
    assert machine.installed_version(wanted[2]) is None
