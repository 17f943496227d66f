"""What a program calls, as docs/python.md shows it, on the demo."""

import doctest
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mmrag_batch
from mmrag_batch.cli.app import app
from mmrag_batch.errors import ConfigError, InputError, PartialError
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.output import OUTPUT_COLUMNS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the page is: the demo's table and a bundle."""
    demo = ROOT / "examples" / "demo"
    shutil.copytree(demo / "images", tmp_path / "images")
    shutil.copy(demo / "questions.csv", tmp_path / "in.csv")
    (tmp_path / "my-bundle").symlink_to(DEMO_BUNDLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_true(folder: Path) -> None:
    done = doctest.testfile(
        str(PAGE),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL,
    )
    assert done.attempted >= 10
    assert done.failed == 0


def test_a_call_and_a_command_write_the_same_and_measure_the_same(folder: Path) -> None:
    given: dict[str, Any] = {"engine": "scripted", "limit": 20, "device": "cpu"}
    called = mmrag_batch.predict(Path("in.csv"), folder / "called.csv", **given)
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert CliRunner().invoke(app, ["predict", "in.csv", "typed.csv", *words]).exit_code == 0
    assert called.read_bytes() == (folder / "typed.csv").read_bytes()
    said = CliRunner().invoke(app, ["evaluate", "typed.csv", "--json", "--by", "kind"])
    measured = asdict(mmrag_batch.evaluate(called, by=["kind"]))
    del measured["page"]
    assert json.loads(json.dumps(measured)) == json.loads(said.stdout)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "csv.gz"])
def test_answers_are_read_from_every_format(folder: Path, suffix: str) -> None:
    output = mmrag_batch.predict(
        "in.csv", f"out.{suffix}", engine="scripted", limit=20, device="cpu", bundle=DEMO_BUNDLE
    )
    answers = mmrag_batch.read_answers(output)
    assert len(answers) == 20
    assert list(answers.columns)[-len(OUTPUT_COLUMNS) :] == list(OUTPUT_COLUMNS)
    names = ("choice_probabilities", "prediction_index", "confidence", "evidence")
    for probabilities, index, confidence, evidence in zip(*(answers[name] for name in names)):
        assert math.isclose(sum(probabilities), 1, abs_tol=1e-3)
        assert probabilities[index] == pytest.approx(confidence, abs=1e-6)
        assert all(set(one) == {"id", "score"} for one in evidence)
    assert any(answers["evidence"])


def test_what_goes_wrong_is_raised(folder: Path) -> None:
    (folder / "gone.csv").write_text("question_text,question_image\nWhat?,gone.png\n")
    with pytest.raises(PartialError, match="1 of 1 rows have no answer") as partial:
        mmrag_batch.predict("gone.csv", "gone.out.csv", engine="scripted", device="cpu")
    assert partial.value.exit_code == 3
    with pytest.raises(ConfigError, match=r"^top_k: expected"):
        mmrag_batch.predict("in.csv", "out.csv", top_k=-1)
    with pytest.raises(InputError, match="prediction"):
        mmrag_batch.read_answers("in.csv")


def test_the_environment_of_a_program_is_left_alone(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMRAG_LIMIT", "3")
    output = mmrag_batch.predict("in.csv", "out.csv", engine="scripted", limit=5, device="cpu")
    assert len(mmrag_batch.read_answers(output)) == 5


def test_importing_the_package_is_cheap_and_its_names_are_found() -> None:
    code = "import sys, mmrag_batch; assert not {'typer', 'pandas', 'numpy'} & set(sys.modules); "
    code += "print(*(n for n in dir(mmrag_batch) if n[0] != '_')); mmrag_batch.open_bundle"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"predict", "evaluate", "open_bundle", "read_answers"} <= set(said.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'answer'"):
        mmrag_batch.__getattr__("answer")
