"""The commands that make the parts of the demo bundle, as small as they can be."""

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mmrag_batch.cli.app import app
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.train.settings import DemoEncodersConfig, DemoVisionConfig

CONFIGS = Path(__file__).parents[2] / "train" / "configs"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_world_is_drawn_and_a_generator_made_for_its_words(tmp_path: Path) -> None:
    done = call("demo", "world", tmp_path / "world", "--rows", 3, "--seed", 7)
    table = tmp_path / "world" / "questions.csv"
    assert (done.exit_code, done.stdout) == (0, f"{table}\n"), done.stderr
    assert table.read_text().splitlines()[3].startswith("7-2,")
    assert list((tmp_path / "world" / "images").glob("*.jpg"))

    done = call("demo", "generator", tmp_path / "model", "--table", table)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'model'}\n"), done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_the_demo_bundle_writes_the_answers_of_a_world_that_it_has_not_seen(tmp_path: Path) -> None:
    table, out = tmp_path / "questions.csv", tmp_path / "out.csv"
    assert call("demo", "world", tmp_path, "--rows", 40, "--seed", 9003, "--free-form").stdout
    assert "answer_choices" not in table.read_text()
    assert call("predict", table, out, "--engine", "transformers").exit_code == 0
    figures = json.loads(call("evaluate", out, "--json").stdout)["overall"]
    assert (figures["free_form_rows"], figures["accuracy"]) == (40, None)
    assert figures["free_form"]["exact_match"] >= 0.9
    assert figures["calibration_error"] < 0.1


def test_a_generator_needs_a_table_that_is_there(tmp_path: Path) -> None:
    done = call("demo", "generator", tmp_path / "model", "--table", tmp_path / "none.csv")
    assert done.exit_code == 66
    assert done.stderr.splitlines()[-1].startswith("mmrag-batch: ")
    assert "none.csv" in done.stderr


@pytest.mark.parametrize(
    ("part", "name"),
    [("encoders", "demo_encoders.train_encoders"), ("vision", "demo_vision.train_vision")],
)
def test_a_config_reaches_what_trains(
    part: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[DemoEncodersConfig | DemoVisionConfig] = []
    monkeypatch.setattr(f"mmrag_batch.train.{name}", given.append)
    done = call("demo", part, CONFIGS / f"demo_{part}.yaml")
    assert done.exit_code == 0, done.stderr
    assert [(config.pictures, config.learning_rate) for config in given] == [(12000, 0.001)]


def test_training_says_how_far_it_is_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    logging.getLogger("mmrag_batch.train").info("step 1 of %s", "https://me:pw@host/table.csv")
    logging.getLogger("others").info("chatter")
    logging.getLogger("others").warning("token=abc")
    says = capsys.readouterr().err
    assert "step 1 of https://***@host/table.csv" in says
    assert "token=***" in says
    assert "chatter" not in says
    start_logging(logging.WARNING)
    logging.getLogger("mmrag_batch.train").info("step 2")
    assert capsys.readouterr().err == ""
