"""With real models, an answer is that of its row alone: whatever else is asked with it, and when."""

import csv
import json
import signal
from pathlib import Path

import pytest

from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train.demo_world import write_world
from tests.faults.commands import Commands
from tests.run.parts import call, count, wait_for

ROWS = 40
"""More than retrieval encodes together."""
Answers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), rows=ROWS, seed=9501)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundle(request: pytest.FixtureRequest, int8_bundle: Path) -> Path:
    return int8_bundle if request.param == "int8" else DEMO_BUNDLE


def predict(table: Path, output: Path, bundle: Path, *options: object) -> None:
    words = ("--engine", "transformers", "--device", "cpu", "--bundle", bundle, *options)
    done = call("predict", table, output, *words)
    assert done.exit_code == 0, done.stderr


def read(output: Path) -> Answers:
    """The answers by the id of their row."""
    with output.open(newline="", encoding="utf-8") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def backwards(table: Path) -> Path:
    """The same rows the other way round, beside it, where their pictures are."""
    lines = table.read_text(encoding="utf-8").splitlines()
    out = table.with_name("backwards.csv")
    out.write_text("\n".join([lines[0], *reversed(lines[1:]), ""]), encoding="utf-8")
    return out


def check(actual: Answers, expected: Answers) -> None:
    assert actual.keys() == expected.keys()
    for name, row in expected.items():
        mine = actual[name]
        for column in ("evidence", "prediction", "status"):
            assert mine[column] == row[column]
        probabilities, others = (json.loads(each["choice_probabilities"]) for each in (mine, row))
        assert probabilities == pytest.approx(others, abs=1e-5)


def test_o02_answers_depend_on_their_row_alone(
    world: Path, bundle: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "whole.csv"
    predict(world, out, bundle, "--batch-size", 8)
    expected = read(out)
    assert len({row["evidence"] for row in expected.values()}) == len(expected) == ROWS

    out = tmp_path / "backwards.csv"
    predict(backwards(world), out, bundle, "--batch-size", 3)
    check(read(out), expected)

    out = tmp_path / "shards.csv"
    for index in range(3):
        predict(world, out, bundle, "--shard", f"{index}/3", "--batch-size", 1)
    assert call("merge", out).exit_code == 0
    check(read(out), expected)

    out = tmp_path / "killed.csv"
    words = ("--engine", "transformers", "--device", "cpu", "--bundle", bundle, "--batch-size", 1)
    hook = "tests.run.parts:commit_each_row"
    running = commands.start("predict", world, out, *words, folder=tmp_path, hook=hook)
    wait_for(lambda: 0 < count(out.with_name("killed.csv.store")))
    running.send_signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert not out.exists()
    predict(world, out, bundle, "--batch-size", 8)
    check(read(out), expected)
