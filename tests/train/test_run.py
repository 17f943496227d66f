import json
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mmrag_batch.errors import ConfigError
from mmrag_batch.train.run import Run, check_same


@dataclass(frozen=True)
class Settings:
    out: Path
    learning_rate: float = 1e-3


def start(directory: Path, *, seed: int = 7) -> Run:
    return Run(directory / "run", Settings(directory / "run"), seed=seed, inputs={"a.csv": "5c"})


def test_the_settings_are_kept(tmp_path: Path) -> None:
    run = start(tmp_path)
    kept = yaml.safe_load((run.directory / "config.yaml").read_text())
    assert kept == {"out": str(tmp_path / "run"), "learning_rate": 1e-3}


def test_the_provenance_names_versions_seed_and_inputs(tmp_path: Path) -> None:
    run = start(tmp_path)
    provenance = json.loads((run.directory / "provenance.json").read_text())
    assert provenance["inputs"] == {"a.csv": "5c"}
    assert provenance["seed"] == 7
    assert provenance["torch"] == version("torch")


def test_each_report_is_a_line(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.report(step=1, loss=0.123456)
    run.report(best="yes")
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.1235}, {"best": "yes"}]


def test_a_new_run_starts_its_metrics_over(tmp_path: Path) -> None:
    start(tmp_path).report(step=1)
    start(tmp_path).report(step=2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 2}]


def test_the_curves_are_drawn_at_each_report(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.report(rows=5)
    assert not (run.directory / "curves.svg").exists()
    for step in (1, 2):
        run.report(step=step, loss=1 / step)
        assert f">loss: {1 / step:g}<" in (run.directory / "curves.svg").read_text()


def test_a_step_that_comes_up_again_after_a_kill_is_drawn_once(tmp_path: Path) -> None:
    run = start(tmp_path)
    for epoch in (1, 2, 3):
        run.report(epoch=epoch, mrr=epoch / 10)
    whole = (run.directory / "curves.svg").read_text()
    with (run.directory / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 4, "mr')
    again = Run(run.directory, Settings(run.directory), seed=7, resumed=True)
    again.report(epoch=3, mrr=0.3)
    assert (run.directory / "curves.svg").read_text() == whole
    assert ">epoch<" in whole


def drawn(directory: Path, seed: int) -> tuple[float, float, float]:
    start(directory, seed=seed)
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_the_seed_settles_every_random_number(tmp_path: Path) -> None:
    assert drawn(tmp_path, 7) == drawn(tmp_path, 7)
    assert all(a != b for a, b in zip(drawn(tmp_path, 7), drawn(tmp_path, 8)))


def test_a_run_that_goes_on_has_the_same_settings_and_inputs(tmp_path: Path) -> None:
    run = start(tmp_path)
    inputs = {"a.csv": "5c"}
    unfinished = run.directory / "checkpoint.pt"
    settings = Settings(run.directory)
    check_same(run.directory, settings, inputs, unfinished=unfinished)
    with (run.directory / "config.yaml").open("a") as stream:
        stream.write("report_to: wandb\n")  # where figures go may change
    check_same(run.directory, settings, inputs, unfinished=unfinished)
    check_same(tmp_path / "new", settings, inputs, unfinished=unfinished)
    with pytest.raises(ConfigError, match=r"\(learning_rate: 0\.001 -> 0\.5\).*checkpoint\.pt"):
        check_same(run.directory, Settings(run.directory, 0.5), inputs, unfinished=unfinished)
    with pytest.raises(ConfigError, match=r"\(a\.csv: changed; b: added or removed\)"):
        check_same(run.directory, settings, {"a.csv": "6d", "b": "7"}, unfinished=unfinished)
