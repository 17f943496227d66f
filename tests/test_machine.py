import os
import shlex
import stat
import subprocess
import sys
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


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra of ours that asks for what is not here, and for what is."""
    texts = ["numpy>=1", "none-a[x]>=3,<4; extra == 'odd'", "none-b; extra == 'odd'", "none-b"]
    monkeypatch.setattr(machine, "extras", lambda: {"odd": list(map(Requirement, texts))})


def test_a_line_installs_what_is_lacking_and_no_more(lacking: None) -> None:
    *_, first, second = shlex.split(machine.install("odd"))
    assert (Requirement(first), second) == (Requirement("none-a[x]>=3,<4"), "none-b")
    again = shlex.split(machine.install("odd", again=True))
    assert again[-4:-2] == ["--force-reinstall", "numpy>=1"]


def test_the_line_is_one_that_pip_takes_and_of_the_python_that_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another pip first on the PATH; for packages that are here, so that none is fetched."""
    install(tmp_path, "pip", "another")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    line = machine.install("parquet", "report")
    assert line.startswith(f"{sys.executable} -m pip install ")
    done = subprocess.run(
        f"{line} --dry-run --no-index --no-deps", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Requirement already satisfied") == 2


def test_pip_has_a_short_name_where_it_is_the_first_on_the_path(
    command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.pip() == f"{sys.executable} -m pip"
    install(command, "pip", "ours")
    monkeypatch.setattr(sys, "executable", str(command / "python"))
    assert machine.pip() == "pip"
