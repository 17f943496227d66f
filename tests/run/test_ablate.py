"""Ablations: what is asked again, that it is one thing, and how it is compared."""

import csv
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.run.parts import call

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
ROWS = 24
ALL = "evidence,question-image,oracle"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo's first rows, ranked by its retriever."""
    folder = tmp_path_factory.mktemp("run")
    with (DEMO / "questions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[:ROWS]
    write(folder / "in.csv", rows)
    assert predict(folder).exit_code == 0
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def predict(folder: Path, *options: object) -> Result:
    words = ("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")
    return call(*words, "--image-root", DEMO, *options)


def evaluate(folder: Path, *options: object) -> Result:
    return call("evaluate", folder / "out.csv", *options)


def to_ask(done: Result) -> tuple[int, int]:
    """How many questions there were, and how many of them had no answer; none where all is done."""
    if "there is nothing to do" in done.stderr:
        return 0, 0
    found = re.search(r"(\d+) rows, \d+ of them answered before, (\d+) to ask", done.stderr)
    assert found, done.stderr
    return int(found[1]), int(found[2])


def answers(folder: Path) -> Iterator[dict[str, Any]]:
    (path,) = (folder / "out.csv.ablations").glob("*/answers.jsonl")
    yield from map(json.loads, path.read_text().splitlines())


def ids(cell: object) -> list[str]:
    items = json.loads(cell) if isinstance(cell, str) else cell
    assert isinstance(items, list)
    return [item["id"] for item in items]


def is_right(row: Mapping[str, Any]) -> bool:
    return bool(row["prediction"] == row["label"])


def test_each_ablation_changes_one_thing_of_the_rows_that_have_it(folder: Path) -> None:
    assert evaluate(folder, "--ablate", ALL).exit_code == 0
    before = read(folder / "out.csv")
    changed: dict[str, list[dict[str, Any]]] = {}
    for row in answers(folder):
        changed.setdefault(row["ablation"], []).append(row)
    with_evidence = [number for number, row in enumerate(before) if ids(row["evidence"])]
    assert [row["row"] for row in changed["evidence"]] == with_evidence
    for row in changed["evidence"]:
        was = before[row["row"]]
        assert row["evidence"] == []
        assert (row["question_text"], row["question_image"] or "") == (
            was["question_text"],
            was["question_image"],
        )
    with_picture = [number for number, row in enumerate(before) if row["question_image"]]
    assert [row["row"] for row in changed["question-image"]] == with_picture
    for row in changed["question-image"]:
        assert row["question_image"] is None
        assert ids(row["evidence"]) == ids(before[row["row"]]["evidence"])
    with_relevant = [number for number, row in enumerate(before) if json.loads(row["relevant"])]
    assert [row["row"] for row in changed["oracle"]] == with_relevant
    for row in changed["oracle"]:
        was = before[row["row"]]
        relevant = list(map(str, json.loads(was["relevant"])))
        rest = [name for name in ids(was["evidence"]) if name not in relevant]
        assert ids(row["evidence"]) == [*relevant, *rest][:3]


def test_figures_are_those_of_the_same_rows_here_and_there(folder: Path) -> None:
    done = evaluate(folder, "--ablate", "evidence", "--json")
    told = json.loads(done.stdout)["ablations"]["no evidence"]
    before = read(folder / "out.csv")
    pairs = [(is_right(row), is_right(before[row["row"]])) for row in answers(folder)]
    assert told["rows"] == len(pairs) == sum(bool(ids(row["evidence"])) for row in before)
    assert told["accuracy"]["correct"] == sum(here for here, _ in pairs)
    assert told["in_the_run"]["correct"] == sum(there for _, there in pairs)
    assert told["became_right"] == sum(here and not there for here, there in pairs)
    assert told["became_wrong"] == sum(there and not here for here, there in pairs)
    table = evaluate(folder, "--ablate", "evidence").stdout.splitlines()[-1].split()
    assert table[:3] == ["no", "evidence", str(len(pairs))]
    assert table[3] == f"{told['accuracy']['value']:.3f}"


def test_the_same_again_asks_nothing_and_one_more_asks_what_is_new(folder: Path) -> None:
    first, missing = to_ask(evaluate(folder, "--ablate", "evidence", "--rows", 8))
    assert 0 < first == missing <= 8
    assert to_ask(evaluate(folder, "--ablate", "evidence", "--rows", 8)) == (0, 0)
    more, missing = to_ask(evaluate(folder, "--ablate", "evidence,oracle", "--rows", 8))
    assert 0 < missing == more - first <= 8


def test_an_output_that_has_changed_since_is_not_shown_with_them(folder: Path) -> None:
    evaluate(folder, "--ablate", "oracle")
    page = folder / "report.html"
    call("report", folder / "out.csv", "--out", page)
    assert 'id="ablations"' in page.read_text()
    assert "oracle evidence" in page.read_text()
    write(folder / "in.csv", [row for row in inputs(folder) if row["kind"] != "knowledge"])
    assert predict(folder).exit_code == 0
    call("report", folder / "out.csv", "--out", page)
    assert 'id="ablations"' not in page.read_text()
    assert "Ablations are not shown: they were made of an output" in page.read_text()
    assert to_ask(evaluate(folder, "--ablate", "oracle"))[1] == 0
    call("report", folder / "out.csv", "--out", page)
    assert 'id="ablations"' in page.read_text()


def inputs(folder: Path) -> list[dict[str, str]]:
    return read(folder / "in.csv")


def test_rows_that_have_nothing_to_change_are_told(folder: Path) -> None:
    write(folder / "in.csv", [row | {"question_image": ""} for row in inputs(folder)])
    assert predict(folder).exit_code == 0
    done = evaluate(folder, "--ablate", "question-image")
    assert (done.exit_code, "no row has what would be changed" in done.stderr) == (65, True)


def test_what_cannot_be_compared_is_refused_before_anything_is_asked(folder: Path) -> None:
    done = evaluate(folder, "--ablate", "evidence,nothing")
    assert done.exit_code == 78
    assert "'nothing' is none of evidence, question-image, oracle" in done.stderr
    write(folder / "in.csv", [row | {"label": ""} for row in inputs(folder)])
    assert predict(folder).exit_code == 0
    done = evaluate(folder, "--ablate", "evidence")
    assert (done.exit_code, "no answered row has a label" in done.stderr) == (65, True)
    with (folder / "out.csv").open("a") as stream:
        stream.write("\n")
    done = evaluate(folder, "--ablate", "evidence")
    assert (done.exit_code, "was changed since it was written" in done.stderr) == (78, True)
    assert not (folder / "out.csv.ablations").exists()
