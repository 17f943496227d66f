"""Each plug point takes a toy, defined in one file and added by one call, and `predict` runs it."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch.bundle import Bundle, hash_files, read_manifest, write_manifest
from mmrag_batch.cli.app import app
from mmrag_batch.declare import SWITCH, setting, settings_of
from mmrag_batch.execute import executor
from mmrag_batch.families import family
from mmrag_batch.generation import engine
from mmrag_batch.generation.engines.scripted import ScriptedEngine
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.retrieval import candidates
from mmrag_batch.run.predict import predict
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings, load_predict_settings
from mmrag_batch.table import formats
from mmrag_batch.testing import (
    KeyValues,
    TextLlama,
    open_first_choice,
    open_first_documents,
    run_in_turns,
)

ROWS = [
    {
        "question_text": f"What is {number}?",
        "answer_choices": ["red", "blue", "green"],
        "documents": ["A red cube.", "A blue ball.", "A green cone."],
    }
    for number in range(5)
]


@pytest.fixture(autouse=True)
def registries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ENGINES", dict(engine.ENGINES))
    monkeypatch.setattr(candidates, "SOURCES", dict(candidates.SOURCES))
    monkeypatch.setattr(executor, "EXECUTORS", dict(executor.EXECUTORS))
    monkeypatch.setattr(family, "FAMILIES", dict(family.FAMILIES))
    monkeypatch.setattr(formats, "FORMATS", list(formats.FORMATS))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def call(table: Path, *options: str, output: str = "out.csv") -> list[dict[str, str]]:
    """The rows that `predict` writes."""
    target = table.with_name(output)
    words = ["predict", str(table), str(target), "--device", "cpu", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    with target.open(newline="") as stream:
        return list(csv.DictReader(stream)) if output.endswith(".csv") else []


def test_an_engine(table: Path) -> None:
    engine.add_engine("first", open_first_choice)
    rows = call(table, "--engine", "first")
    assert [row["prediction"] for row in rows] == ["red"] * len(ROWS)


def test_a_source_of_candidates(table: Path) -> None:
    candidates.add_source("first", open_first_documents, key=lambda _: "the first two")
    rows = call(table, "--candidates", "first", "--engine", "scripted")
    evidence = [{"id": "0", "score": 1.0}, {"id": "1", "score": 1.0}]
    assert [json.loads(row["evidence"]) for row in rows] == [evidence] * len(ROWS)
    note = json.loads(table.with_name("out.csv.manifest.json").read_text())["settings"]
    assert (note["candidates"], note["documents"]) == ("first", "the first two")


def test_an_executor(table: Path) -> None:
    executor.add_executor("turns", run_in_turns)
    rows = call(table, "--executor", "turns", "--engine", "scripted")
    assert rows == call(table, "--engine", "scripted", output="local.csv")


def test_ray_that_is_not_installed_is_told_with_the_line_to_type(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mmrag_batch.execute.ray", raising=False)
    monkeypatch.delitem(sys.modules, "mmrag_batch.execute.ray_cluster", raising=False)
    words = ["predict", str(table), str(table.with_name("out.csv")), "--ray", "auto"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 69
    assert re.search(r"ray is not installed. Run `.*pip install .*ray>=", done.output)


def test_a_format_to_read_and_to_write(table: Path) -> None:
    formats.add_format(KeyValues())
    call(table, "--engine", "scripted", output="out.kv")
    whole = table.with_name("out.kv").read_text().splitlines()
    assert len(whole) == len(ROWS)
    assert all("prediction=" in line for line in whole)
    questions = ["\t".join(f"{k}={json.dumps(v)}" for k, v in row.items()) + "\n" for row in ROWS]
    (again := table.with_name("in.kv")).write_text("".join(questions))
    rows = call(again, "--engine", "scripted", output="again.csv")
    assert [row["prediction"] for row in rows] == [
        row["prediction"] for row in call(table, "--engine", "scripted", output="other.csv")
    ]


def test_the_recipes_of_contributing_work_as_they_are_written(table: Path) -> None:
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        assert len([line for line in block.splitlines() if line]) <= 10
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    rows = call(table, "--engine", "echo", "--candidates", "none", "--executor", "reversed")
    assert [row["prediction"] for row in rows] == [rows[0]["prediction"]] * len(ROWS)
    assert {row["evidence"] for row in rows} == {"[]"}
    (lines := table.with_name("in.txt")).write_text("What?\nWhy?\n")
    assert len(call(lines, "--engine", "echo", output="lines.csv")) == 2
    assert "SiblingForConditionalGeneration" in family.FAMILIES
    assert "beams" in settings_of(names["Settings"])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LoudSettings(PredictSettings):
    """With a setting that changes answers."""

    loud: bool = setting(SWITCH, False, "Whether to shout.", changes_answers=True)


def open_loud(settings: PredictSettings, _bundle: Bundle, _spec: PromptSpec) -> ScriptedEngine:
    assert isinstance(settings, LoudSettings)
    return Loud() if settings.loud else ScriptedEngine()


class Loud(ScriptedEngine):
    """Shouts."""

    def generate(self, requests: "Iterator[engine.Request]", /) -> Iterator[engine.Result]:  # type: ignore[override]
        return (result._replace(text=result.text.upper()) for result in super().generate(requests))


def test_a_setting_that_changes_answers(tmp_path: Path) -> None:
    engine.add_engine("loud", open_loud)
    (tmp_path / "in.csv").write_text("question_text\nWhat?\n")
    words = {"engine": "loud", "device": "cpu"}

    def ask(output: str, **environ: str) -> str:
        settings = load_predict_settings(
            tmp_path / "in.csv", tmp_path / output, words, environ=environ, kind=LoudSettings
        )
        predict(settings)
        with (tmp_path / output).open(newline="") as stream:
            (row,) = csv.DictReader(stream)
        return row["prediction"]

    assert ask("quiet.csv").startswith("answer")
    assert ask("loud.csv", MMRAG_LOUD="yes").startswith("ANSWER")
    with pytest.raises(Exception, match="loud: was False, is True"):
        ask("quiet.csv", MMRAG_LOUD="yes")


@pytest.fixture
def text_bundle(tmp_path: Path) -> Path:
    """The demo bundle with a generator of another architecture, untrained."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO_BUNDLE, bundle)
    (generator := bundle / "generator")
    for file in (*generator.glob("*.safetensors*"), *generator.glob("preprocessor*")):
        file.unlink()
    had = json.loads((generator / "generation_config.json").read_text())
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig(**had)  # type: ignore[no-untyped-call]
    model.save_pretrained(generator)
    manifest = read_manifest(bundle)
    (bundle / "bundle.json").unlink()
    write_manifest(bundle, replace(manifest, files=hash_files(bundle)))
    return bundle


@pytest.mark.slow
def test_a_family(table: Path, text_bundle: Path) -> None:
    family.add_family("LlamaForCausalLM", TextLlama)
    options = ("--bundle", str(text_bundle), "--engine", "transformers")
    rows = call(table, *options)
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["choice_probabilities"] for row in rows}) == len(ROWS)


@pytest.mark.parametrize(
    ("option", "known"),
    [("--engine", "vllm"), ("--candidates", "row"), ("--executor", "local")],
)
def test_a_name_that_nothing_has_is_refused_before_anything_is_read(
    table: Path, option: str, known: str
) -> None:
    words = ["predict", str(table), str(table.with_name("out.csv")), option]
    done = CliRunner().invoke(app, [*words, known[:-1]])
    assert done.exit_code == 78, done.output
    assert f"did you mean {known!r}?" in done.output
    done = CliRunner().invoke(app, [*words, "zzz"])
    assert "expected one of" in done.output
    assert known in done.output
    assert list(table.parent.glob("out.csv.store*")) == []
