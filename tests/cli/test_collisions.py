"""A user's own `train.py` and `export/` beside the table: each side imports its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(params=["beside the table", "on PYTHONPATH"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A working folder, and an environment, in which `train` and `export` are the user's."""
    folder = tmp_path if request.param == "beside the table" else tmp_path / "theirs"
    (folder / "export").mkdir(parents=True)
    (folder / "train.py").write_text("MINE = 'trained'\n")
    (folder / "export" / "__init__.py").write_text("MINE = 'exported'\n")
    (tmp_path / "in.csv").write_text("question_text\nWhat is it?\n")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return tmp_path, os.environ | {"PYTHONPATH": path, "MMRAG_ENGINE": "scripted"}


def call(own: tuple[Path, dict[str, str]], *words: str) -> subprocess.CompletedProcess[str]:
    folder, environ = own
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environ, capture_output=True, text=True
    )


COMMAND = Path(sys.executable).with_name("mmrag-batch")


@pytest.mark.parametrize("program", [["-m", "mmrag_batch"], [str(COMMAND)]], ids=["-m", "script"])
def test_commands_run_ours(own: tuple[Path, dict[str, str]], program: list[str]) -> None:
    done = call(own, *program, "predict", "in.csv", "out.csv", "--device", "cpu", "--quiet")
    assert done.returncode == 0, done.stderr
    assert (own[0] / "out.csv").read_text().count("\n") == 2

    for words in (["train", "retriever", "no.yaml"], ["export", "--config", "no.yaml"]):
        done = call(own, *program, *words)
        assert done.returncode != 0
        assert "no.yaml" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_user_imports_theirs(own: tuple[Path, dict[str, str]]) -> None:
    done = call(
        own,
        "-c",
        "import mmrag_batch.train, mmrag_batch.export; import train, export; "
        "print(train.MINE, export.MINE)",
    )
    assert done.stdout.split() == ["trained", "exported"], done.stderr
