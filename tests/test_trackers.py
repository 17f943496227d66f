"""Figures that a tracker keeps, read back from where it keeps them. What is not installed here is
skipped; each runs in a process of its own, as it leaves hooks and services behind."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch import trackers
from mmrag_batch.cli.app import app
from mmrag_batch.machine import pip
from mmrag_batch.trackers import Tracker, TrackerName, flatten
from tests.report.outputs import make_row, write_output

Curve = list[tuple[int, float]]
NOBODY = "http://127.0.0.1:9"
"""Where no server is."""
KILLED = """
import os, sys
from dataclasses import dataclass
from pathlib import Path
from mmrag_batch.train.run import Run

@dataclass
class Settings:
    out: Path
    source: str = "https://me:hunter22@example.org/"

out = Path(sys.argv[1])
run = Run(out, Settings(out), seed=1, resumed=(out / "config.yaml").exists(), report_to=sys.argv[2])
run.report(rows=7)
for step in map(int, sys.argv[3].split(",")):
    run.report(step=step, loss=1 / (1 + step), note="a word")
run.report(best_step=1)
run.close()
"""
"""A training of some steps, by the class that every training reports with."""


def train(out: Path, name: TrackerName, steps: str, **environment: str) -> str:
    """Run `KILLED` in a home of its own, and its folder; what it said."""
    offline = {
        "HOME": str(out.parent),
        "TRACKIO_DIR": str(out.parent / "trackio"),
        "MLFLOW_TRACKING_URI": (out.parent / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), name, steps],
        env={**os.environ, **offline, **environment},
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "what a command prints is its result"
    return done.stderr


def in_tensorboard(out: Path) -> dict[str, Curve]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = (out / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def in_mlflow(out: Path) -> dict[str, Curve]:
    [run] = (out.parent / "mlruns").glob("*/*/metrics")
    lines = {file.name: file.read_text().splitlines() for file in run.iterdir()}
    fields = {name: [line.split() for line in of] for name, of in lines.items()}
    return {name: [(int(at), float(value)) for _, value, at in of] for name, of in fields.items()}


def in_trackio(out: Path) -> dict[str, Curve]:
    [file] = (out.parent / "trackio").glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute(
            "SELECT run_name, step, metrics FROM metrics ORDER BY id"
        ).fetchall()
    assert len({run for run, _, _ in rows}) == 1
    curves: dict[str, Curve] = {}
    for _, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            curves.setdefault(name, []).append((step, value))
    return curves


def in_wandb(out: Path) -> dict[str, Curve]:
    """From the files of W&B's log of records, each behind a checksum, its length and its type."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs, curves = set(), dict[str, Curve]()
    for file in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        runs.add(file.stem)
        data, at = file.read_bytes(), 7
        while at + 7 <= len(data):
            end = at + 7 + int.from_bytes(data[at + 4 : at + 6], "little")
            record = Record.FromString(data[at + 7 : end])
            at = end
            step = record.history.step.num
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    curves.setdefault(name, []).append((step, json.loads(item.value_json)))
    assert len(runs) == 1
    return curves


KEPT: dict[TrackerName, Callable[[Path], dict[str, Curve]]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
    "wandb": in_wandb,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_a_training_that_was_killed_goes_on_in_the_same_curve(
    name: TrackerName, tmp_path: Path
) -> None:
    pytest.importorskip(name)
    out = tmp_path / "run"
    train(out, name, "1,2,3")
    train(out, name, "2,3,4")  # from a checkpoint of step 1
    curves = KEPT[name](out)
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4]
    assert dict(curves["loss"])[4] == pytest.approx(1 / 5)
    assert [value for _, value in curves["rows"]] == [7]
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert kept.count(b"hunter22") == 1  # in config.yaml, which is the user's own
    assert b"https://***@example.org/" in kept


def test_a_run_that_begins_anew_has_a_curve_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for _ in range(2):
        tracker = Tracker("tensorboard", tmp_path, "run", {})
        tracker.log({"loss": 1.0}, 1)
        tracker.close()
        assert tracker.problem is None
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_tracker_that_comes_later_gets_the_figures_before(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    train(out, "none", "1,2")
    assert not (out / "tensorboard").exists()
    train(out, "tensorboard", "2,3")
    assert {step for step, _ in in_tensorboard(out)["loss"]} == {1, 2, 3}


def test_no_tracker_starts_because_it_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "tracker" not in train(out, "none", "1,2", WANDB_API_KEY="a" * 40)
    names = ["config.yaml", "curves.svg", "metrics.jsonl", "provenance.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert list(tmp_path.iterdir()) == [out]


def test_a_tracker_that_is_not_installed_is_said_before_anything_heavy_loads(
    tmp_path: Path,
) -> None:
    config = tmp_path / "retriever.yaml"
    needed = "encoders: e\ntable: t.csv\nepochs: 1\nbatch_size: 1\nlearning_rate: 1\nhidden_size: 1"
    config.write_text(f"{needed}\nout: {tmp_path}/run\nreport_to: trackio\n")
    script = f"""
import sys
sys.modules["trackio"] = None
sys.argv = ["mmrag-batch", "train", "retriever", {str(config)!r}]
from mmrag_batch.cli.app import main
try:
    main()
finally:
    assert not {{"torch", "transformers", "accelerate"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 69, done.stderr
    assert f"trackio is not installed. Run `{pip()} install trackio`." in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_nobody_knows_is_told_with_those_that_are(tmp_path: Path) -> None:
    config = tmp_path / "retriever.yaml"
    config.write_text("report_to: paper\n")
    done = CliRunner().invoke(app, ["train", "retriever", str(config)])
    assert done.exit_code == 78
    assert "expected one of none, tensorboard, wandb, mlflow, trackio" in done.stderr


@pytest.mark.slow
def test_a_server_that_is_not_there_costs_the_figures_there_and_nothing_else(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mlflow")
    out = tmp_path / "run"
    server = {"MLFLOW_TRACKING_URI": NOBODY, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    told = train(out, "mlflow", "1,2", **server)
    assert told.count("mlflow gets no figures of this run") == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    assert (out / "curves.svg").is_file()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_holds_nothing_up(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    tracker = Tracker("mlflow", tmp_path, "run", {})
    tracker.log({"loss": 1.0}, 1)
    tracker.close()
    assert tracker.problem == "mlflow has not taken all figures within 0.1 s"


def test_wandb_without_a_login_keeps_the_figures_for_later(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    told = train(tmp_path / "run", "wandb", "1,2")
    assert "(nobody is logged in). To send them, run `wandb login` and `wandb sync" in told
    assert in_wandb(tmp_path / "run")["loss"] == [(1, 0.5), (2, pytest.approx(1 / 3))]


@pytest.mark.slow
def test_wandb_without_a_network_keeps_the_figures_for_later(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    login = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": NOBODY}
    told = train(tmp_path / "run", "wandb", "1,2", **login)
    assert "To send them, run `wandb login` and `wandb sync" in told
    assert [step for step, _ in in_wandb(tmp_path / "run")["loss"]] == [1, 2]


def test_numbers_are_named_by_where_they_stand() -> None:
    nested = {"overall": {"recall": {3: 0.5}, "rows": 2}, "labels": ["a"], "none": None, "on": True}
    assert flatten(nested) == {"overall/recall/3": 0.5, "overall/rows": 2}


def test_evaluate_sends_the_figures_that_it_prints(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    output = write_output(tmp_path / "out.csv", [make_row(number) for number in range(8)])
    command = ["evaluate", str(output), "--json", "--log-to", "tensorboard"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    printed = flatten(json.loads(done.stdout))
    sent = {name: value for name, [(_, value)] in in_tensorboard(tmp_path).items()}
    assert sent == pytest.approx(printed)
    assert sent["overall/rows"] > 0


def test_evaluate_exits_with_69_where_the_figures_could_not_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    output = write_output(tmp_path / "out.csv", [make_row(number) for number in range(8)])
    done = CliRunner().invoke(app, ["evaluate", str(output), "--log-to", "mlflow"])
    assert done.exit_code == 69
    assert "accuracy" in done.stdout  # they are printed all the same
    assert "mlflow gets no figures" in done.stderr
