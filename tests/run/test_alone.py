"""With real models, an answer is that of its row alone, whatever is asked with it, and when."""

import csv
import json
import signal
from pathlib import Path

import pytest

from mmrag_batch.run.shards import Shard, shard_paths
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


def options(bundle: Path) -> tuple[object, ...]:
    return ("--engine", "transformers", "--device", "cpu", "--bundle", bundle)


def predict(table: Path, output: Path, bundle: Path, *others: object) -> None:
    done = call("predict", table, output, *options(bundle), *others)
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


def test_o02_answers_depend_on_their_row_alone(
    world: Path, bundle: Path, tmp_path: Path, commands: Commands
) -> None:
    out = tmp_path / "whole.csv"
    predict(world, out, bundle, "--batch-size", 8)
    expected = read(out)
    assert len({row["evidence"] for row in expected.values()}) == len(expected) == ROWS

    # The other way round, one by one, in two parts, of which the first is killed and goes on.
    table, out = backwards(world), tmp_path / "parts.csv"
    first = ("--shard", "0/2", "--batch-size", 1)
    words = ("predict", table, out, *options(bundle), *first)
    hook = "tests.run.parts:commit_each_row"
    running = commands.start(*words, folder=tmp_path, hook=hook)
    store = shard_paths(out, Shard(0, 2)).store
    wait_for(lambda: count(store))
    running.send_signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert 0 < count(store) < ROWS / 2
    predict(table, out, bundle, *first)
    predict(table, out, bundle, "--shard", "1/2", "--batch-size", 3)
    assert call("merge", out).exit_code == 0
    actual = read(out)
    assert actual.keys() == expected.keys()
    for name, row in expected.items():
        mine = actual[name]
        for column in ("evidence", "prediction", "status"):
            assert mine[column] == row[column]
        probabilities, others = (json.loads(each["choice_probabilities"]) for each in (mine, row))
        assert probabilities == pytest.approx(others, abs=1e-5)
