"""The recipes of containers: what they copy can be installed, and linters have nothing to say.

No registry is asked for a base, so nothing is built in one here.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from mmrag_batch.machine import extras

ROOT = Path(__file__).parents[1]
CONTAINERS = ROOT / "containers"
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text()
SCRIPTS = ["containers/install.sh", "examples/slurm/merge.sbatch", "examples/slurm/predict.sbatch"]
DEFINITION = (CONTAINERS / "mmrag-batch.def").read_text()


def linter(name: str) -> str:
    """Where a linter is, beside Python or on the PATH."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (path := shutil.which(name, path=places)) is None:
        pytest.skip(f"no {name} here")
    return path


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("hadolint", ["containers/Dockerfile"]),
        ("shellcheck", SCRIPTS),
    ],
)
def test_linters_have_nothing_to_say(name: str, files: list[str]) -> None:
    done = subprocess.run([linter(name), *files], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def copied_by_docker(source: Path) -> None:
    """What the Dockerfile copies, links as they are."""
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.M):
        *names, target = line.split()
        place = source.parent / target.lstrip("/")
        for name in names:
            copy(ROOT / name, place / name.rpartition("/")[2] if target.endswith("/") else place)


def copied_by_apptainer(source: Path) -> None:
    """What the definition copies, as it does: links are followed."""
    for name, target in re.findall(r"^    (\S+) (/src/\S*)$", DEFINITION, re.M):
        place = source.parent / target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-fLr", str(ROOT / name), str(place)], check=True)


def copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def files_below(folder: Path) -> set[str]:
    """The files that a build finds there, whatever links lead to them."""
    found = (
        Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names
    )
    return {one.relative_to(folder).as_posix() for one in found if one.suffix != ".pyc"}


@pytest.mark.slow
def test_what_is_copied_becomes_a_wheel_from_which_init_works(tmp_path: Path) -> None:
    """In a folder without a checkout, where configs are those of the wheel."""
    pytest.importorskip("setuptools", reason="nothing to build a wheel with")
    source, site = tmp_path / "src", tmp_path / "site"
    copied_by_docker(source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    folders = ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run([*pip, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert files_below(ROOT / "mmrag_batch") <= {
            name.removeprefix("mmrag_batch/") for name in wheel.namelist()
        }
        wheel.extractall(site)
    words = [sys.executable, "-m", "mmrag_batch", "init", "mine"]
    environ = {**os.environ, "PYTHONPATH": str(site), "PATH": ""}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "    cd mine\n" in done.stdout
    assert (tmp_path / "mine" / "generator.yaml").is_file()


def test_both_recipes_copy_the_same(tmp_path: Path) -> None:
    copied_by_docker(tmp_path / "docker" / "src")
    copied_by_apptainer(tmp_path / "apptainer" / "src")
    both = files_below(tmp_path / "apptainer" / "src" / "mmrag_batch")
    assert both == files_below(tmp_path / "docker" / "src" / "mmrag_batch")
    tops = [
        {one.name for one in (tmp_path / name / "src").iterdir()}
        for name in ("docker", "apptainer")
    ]
    assert tops[0] == tops[1] | {"train", "export"}


def installed(tmp_path: Path, device: str) -> tuple[int, list[str]]:
    """What install.sh types, by what it types, and its exit code."""
    for name in ("pip", "apt-get", "rm"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    words = ["/bin/sh", str(CONTAINERS / "install.sh"), device]
    done = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_a_container_has_the_extras_for_its_device(tmp_path: Path, device: str) -> None:
    code, lines = installed(tmp_path, device)
    assert code == 0
    package = next(word for word in lines[-2].split() if word.startswith("/src["))
    named = Requirement(package.replace("/src", "mmrag-batch")).extras
    assert {device, "train-4bit"} <= named <= extras().keys()
    torch = "pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu"
    assert (lines[0] == torch) == (device == "cpu")
    assert lines[-1] == "rm -rf /src"


def test_another_device_is_refused(tmp_path: Path) -> None:
    assert installed(tmp_path, "tpu") == (2, [])


def test_both_recipes_begin_with_the_same() -> None:
    docker = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
    assert docker == dict(re.findall(r"^    (BASE|DEVICE)=(\S+)$", DEFINITION, re.M))
    assert set(docker) == {"BASE", "DEVICE"}
    assert 'sh /src/containers/install.sh "${DEVICE}"' in DOCKERFILE
    assert "sh /src/containers/install.sh {{ DEVICE }}" in DEFINITION
