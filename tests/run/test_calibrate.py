"""`calibrate`: what it finds on answers of a real model, what it notes, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pytest import approx
from typer.testing import Result

from mmrag_batch.bundle import read_manifest
from mmrag_batch.report.temperature import soften
from mmrag_batch.settings import DEMO_BUNDLE
from tests.run.parts import call

ROWS = 120
TEMPERATURE = 3.0
CHOICES = ("red", "blue", "green")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo's generator, whose labels are as likely as its answers at a temperature."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(DEMO_BUNDLE, folder / "bundle")
    write_table(folder, [""] * ROWS)
    assert predict(folder).exit_code == 0
    random = np.random.default_rng(0)
    likely = [
        np.array(soften(json.loads(row["choice_probabilities"]), TEMPERATURE))
        for row in read(folder)
    ]
    labels = [CHOICES[random.choice(3, p=shares / shares.sum())] for shares in likely]
    write_table(folder, labels)
    assert "0 asked now" in predict(folder).stderr
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    for name in ("in.csv", "out.csv", "out.csv.store", "out.csv.manifest.json"):
        shutil.copy(run / name, tmp_path / name)
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    return tmp_path


def write_table(folder: Path, labels: list[str]) -> None:
    with (folder / "in.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("question_text", "answer_choices", "label"))
        for number, label in enumerate(labels):
            text = f"What colour is the thing called {number * 7919}?"
            table.writerow((text, json.dumps(CHOICES), label))


def predict(folder: Path, *options: object) -> Result:
    words = ("predict", folder / "in.csv", folder / "out.csv", "--engine", "transformers")
    return call(*words, "--device", "cpu", "--bundle", folder / "bundle", *options)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "out.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_later_runs_are_as_sure_as_they_are_right_and_ask_nothing(folder: Path) -> None:
    given = read(folder)
    before = json.loads(call("evaluate", folder / "out.csv", "--json").stdout)
    done = call("calibrate", folder / "out.csv", "--bundle", folder / "bundle")
    assert done.exit_code == 0, done.stderr
    assert f"on {ROWS} rows" in done.stdout
    assert f"{folder}/bundle: noted. Next, which asks no row: mmrag-batch predict" in done.stdout
    noted = read_manifest(folder / "bundle").calibration
    assert noted["temperature"] == approx(TEMPERATURE, rel=0.5)
    assert noted["nll_after"] < noted["nll_before"]

    done = predict(folder)
    assert done.exit_code == 0
    assert "0 asked now" in done.stderr
    assert f"calibrated: temperature {noted['temperature']:.4g}" in done.stderr
    shown = read(folder)
    assert [row["prediction"] for row in shown] == [row["prediction"] for row in given]
    softened = soften(json.loads(given[0]["choice_probabilities"]), noted["temperature"])
    assert json.loads(shown[0]["choice_probabilities"]) == approx(list(softened))
    after = json.loads(call("evaluate", folder / "out.csv", "--json").stdout)
    assert after["overall"]["accuracy"] == before["overall"]["accuracy"]
    error = "calibration_error"
    assert after["overall"][error] < before["overall"][error]


def test_a_calibrated_output_gives_the_same_temperature_again(folder: Path) -> None:
    options = ("--bundle", folder / "bundle", "--json")
    first = json.loads(call("calibrate", folder / "out.csv", *options).stdout)
    predict(folder)
    second = json.loads(call("calibrate", folder / "out.csv", *options).stdout)
    assert second["temperature"] == approx(first["temperature"], rel=1e-3)
    assert second["nll_before"] == approx(first["nll_before"], rel=1e-3)
    assert second["refused"] is None


def test_rows_that_are_all_right_leave_the_bundle_as_it_is(folder: Path) -> None:
    write_table(folder, [row["prediction"] for row in read(folder)])
    predict(folder)
    done = call("calibrate", folder / "out.csv", "--bundle", folder / "bundle")
    assert done.exit_code == 0
    assert "left as it is; no temperature fits: the rows are all right" in done.stdout
    assert read_manifest(folder / "bundle").calibration == {}


def test_too_few_rows_are_refused(folder: Path) -> None:
    write_table(folder, ["red"] * 49)
    predict(folder)
    done = call("calibrate", folder / "out.csv", "--bundle", folder / "bundle")
    assert done.exit_code == 65
    assert "49 rows have choices, a label and probabilities; a temperature takes 50" in done.stderr


def test_an_output_that_was_edited_or_has_no_manifest_is_refused(folder: Path) -> None:
    with (folder / "out.csv").open("a") as stream:
        stream.write("\n")
    done = call("calibrate", folder / "out.csv", "--bundle", folder / "bundle")
    assert (done.exit_code, "was changed since it was written" in done.stderr) == (78, True)
    (folder / "out.csv.manifest.json").unlink()
    done = call("calibrate", folder / "out.csv", "--bundle", folder / "bundle")
    assert (done.exit_code, "No manifest says what" in done.stderr) == (78, True)


def test_answers_of_another_model_or_bundle_or_of_the_packaged_one_are_refused(
    folder: Path,
) -> None:
    other = call("calibrate", folder / "out.csv", "--bundle", DEMO_BUNDLE)
    assert (other.exit_code, "The packaged bundle is not changed" in other.stderr) == (78, True)
    manifest = json.loads((folder / "bundle" / "bundle.json").read_text())
    manifest["generator"]["top_k"] += 1
    (folder / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    other = call("calibrate", folder / "out.csv", "--bundle", folder / "bundle")
    assert (other.exit_code, "was made with something else: bundle" in other.stderr) == (78, True)
    call("predict", folder / "in.csv", folder / "scripted.csv", "--engine", "scripted")
    other = call("calibrate", folder / "scripted.csv")
    assert (other.exit_code, "another model (scripted)" in other.stderr) == (78, True)
