"""`init` and what it prints, as a user types it; and the keys of each file of settings."""

import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from typer.main import get_group
from typer.testing import CliRunner, Result

from mmrag_batch import machine
from mmrag_batch.cli import init
from mmrag_batch.cli.app import app
from mmrag_batch.cli.making import CONFIGS, config_of
from mmrag_batch.configs import as_toml, as_yaml
from mmrag_batch.declare import load_config, settings_of
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.settings import PredictSettings, load_predict_settings
from mmrag_batch.train.settings import GeneratorConfig, RetrieverConfig
from tests.test_house import HEAVY

ROOT = Path(__file__).parents[2]
KINDS: dict[str, type[Any]] = {
    "retriever": RetrieverConfig,
    "generator": GeneratorConfig,
    "export": ExportConfig,
}
SIZES = {80: "llama_11b_80gb", 24: "llama_11b_24gb"}


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def commands(done: Result) -> list[str]:
    assert done.exit_code == 0, done.stderr
    return re.findall(r"^    (.*)$", done.stdout, re.M)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "gpus", list)
    return tmp_path


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts a GPU of so many GB into the machine; drivers call 85.5 GB 79.6 GiB."""
    return lambda size: monkeypatch.setattr(
        machine, "gpus", lambda: [machine.Gpu("A GPU", int(size * 1e9), "580")]
    )


@pytest.mark.slow
def test_what_init_prints_and_only_that_leads_to_a_bundle_and_answers(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("ROWS", 150), ("ASKED", 40), ("STEPS", 4)):
        monkeypatch.setattr(init, name, size)
    typed = commands(call("init", "it's mine"))
    assert [shlex.split(line)[0] for line in typed] == ["cd", *["mmrag-batch"] * 8]
    for line in typed:
        program, *words = shlex.split(line)
        if program == "cd":
            monkeypatch.chdir(words[0])
            continue
        done = call(*words)
        assert done.exit_code == 0, (line, done.stderr)
    assert "accuracy" in done.stdout
    with (here / "it's mine" / "answers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 40
    assert {row["status"] for row in rows} <= {"ok", "degraded"}
    assert sum(row["prediction"] == row["label"] for row in rows) >= 30


@pytest.mark.parametrize(("memory", "size"), [(85.5, 80), (80.0, 80), (48.3, 24), (24.1, 24)])
def test_a_gpu_gets_the_preset_that_fits_it(
    here: Path, with_gpu: Callable[[float], None], memory: float, size: int
) -> None:
    with_gpu(memory)
    done = call("init", "mine")
    assert "accept" in done.stdout
    made = load_config(here / "mine" / "generator.yaml", GeneratorConfig)
    preset = load_config(ROOT / "train" / "configs" / f"{SIZES[size]}.yaml", GeneratorConfig)
    assert made == replace(preset, base=made.base, table=made.table)
    exported = load_config(here / "mine" / "export.yaml", ExportConfig)
    assert exported.generator == made.base
    assert made.retriever == exported.encoders
    retriever = load_config(here / "mine" / "retriever.yaml", RetrieverConfig)
    assert retriever.encoders == exported.encoders
    assert exported.towers == retriever.out / "model"


def test_a_gpu_that_is_too_small_for_the_large_models_gets_the_small_ones(
    here: Path, with_gpu: Callable[[float], None]
) -> None:
    with_gpu(16.9)
    assert call("init").stdout.startswith("No GPU of 24 GB")
    assert load_config(here / "generator.yaml", GeneratorConfig).base == Path("demo")


@pytest.mark.parametrize("memory", [80, 0])
@pytest.mark.parametrize("table", [(), ("--table", "t.csv", "--columns", "label=the answer")])
def test_every_command_that_is_printed_takes_its_words(
    here: Path, with_gpu: Callable[[float], None], memory: int, table: tuple[str, ...]
) -> None:
    (here / "t.csv").write_text("question_text,the answer\nWhat?,a\n")
    with_gpu(memory)
    lines = commands(call("init", "mine", *table))
    ours = lines[lines.index("cd mine") + 1 :]
    assert len(ours) >= 7
    for line in ours:
        program, *words = shlex.split(line)
        assert program == "mmrag-batch"
        context = get_group(app).make_context(program, words)
        while (group := context.command) and hasattr(group, "resolve_command"):
            arguments = [*context._protected_args, *context.args]
            name, command, rest = group.resolve_command(context, arguments)
            assert command is not None, line
            context = command.make_context(name, rest, parent=context)
            if not context._protected_args and not context.args:
                break
    named = [line for line in lines if "--columns 'label=the answer'" in line]
    assert len(named) == (2 if table else 0)


def test_a_table_is_found_from_where_the_commands_are_typed(here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "t.csv").write_text("question_text,answer\nWhat?,a\n")
    lines = commands(call("init", "a/b", "--table", "data/t.csv", "--columns", "label=answer"))
    assert lines[:2] == ["cd a/b", "mmrag-batch validate ../../data/t.csv --columns label=answer"]
    for part in ("retriever", "generator"):
        made: Any = load_config(here / "a" / "b" / f"{part}.yaml", KINDS[part])
        assert (made.table, made.columns) == (Path("../../data/t.csv"), "label=answer")
    file = here / "a" / "b" / "predict.toml"
    settings = load_predict_settings(Path("a"), Path("b"), {}, environ={}, config_file=file)
    assert settings == PredictSettings(
        Path("a"), Path("b"), bundle=Path("bundle"), columns="label=answer"
    )


@pytest.mark.parametrize(
    ("text", "code", "says"), [(None, 66, "no file t.csv"), ("a,b\n1,2\n", 65, "question_text")]
)
def test_a_table_that_cannot_be_read_is_refused_before_anything_is_written(
    here: Path, text: str | None, code: int, says: str
) -> None:
    if text is not None:
        (here / "t.csv").write_text(text)
    done = call("init", "mine", "--table", "t.csv")
    assert done.exit_code == code
    assert says in done.stderr
    assert not (here / "mine").exists()


def test_no_file_is_replaced_and_none_written_beside_one_that_is_there(here: Path) -> None:
    (here / "export.yaml").write_text("mine")
    (here / "generator.yaml").symlink_to("nowhere")
    done = call("init")
    assert done.exit_code == 73
    assert "generator.yaml, export.yaml: exists" in done.stderr
    assert sorted(file.name for file in here.iterdir()) == ["export.yaml", "generator.yaml"]
    assert (here / "export.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(here: Path) -> None:
    (here / "file").touch()
    done = call("init", "file/mine")
    assert done.exit_code == 73
    assert "file/mine cannot be written into" in done.stderr


def test_what_is_missing_here_is_installed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Requirement("no-such-thing>=3")
    monkeypatch.setattr(machine, "extras", lambda: {name: [lacking] for name in init.CPU})
    assert commands(call("init"))[0] == f"{machine.pip()} install 'no-such-thing>=3'"


@pytest.mark.parametrize("command", CONFIGS)
def test_every_key_is_declared_with_its_help(command: str) -> None:
    kind = config_of(command)
    declared = settings_of(kind)
    assert list(declared) == [item.name for item in fields(kind)]
    assert all(len(one.help) > 8 for one in declared.values())


@pytest.mark.parametrize("part", KINDS)
def test_a_file_has_every_key_and_its_defaults_are_the_defaults(here: Path, part: str) -> None:
    call("init")
    file = here / f"{part}.yaml"
    text, kind = file.read_text(), KINDS[part]
    assert re.findall(r"^#?(\w+):", text, re.M) == [item.name for item in fields(kind)]
    made: Any = load_config(file, kind)
    file.write_text(re.sub(r"^#(?=\w)", "", text, flags=re.M))
    assert load_config(file, kind) == made
    assert as_yaml(made, ["again"]).partition("\n\n")[2] == text.partition("\n\n")[2]
    assert max(map(len, text.splitlines())) <= 100


def test_values_are_written_as_they_are_read(here: Path) -> None:
    odd = "a: b # c 'd' \"e\" ü \\ \x07"
    made = ExportConfig(Path("yes"), Path("1e3"), licence=odd, notice="null", trained_on="#")
    (here / "a.yaml").write_text(as_yaml(made, [odd.rstrip("\x07")]), encoding="utf-8")
    assert load_config(here / "a.yaml", ExportConfig) == made
    asked = PredictSettings(Path("a"), Path("b"), bundle=Path(odd), row_timeout=5, quiet=True)
    (here / "a.toml").write_text(as_toml(asked, ["head"], "predict"), encoding="utf-8")
    told = {"environ": {}, "config_file": here / "a.toml"}
    assert load_predict_settings(Path("a"), Path("b"), {}, **told) == asked  # type: ignore[arg-type]


@pytest.mark.parametrize("command", CONFIGS)
def test_keys_are_listed_without_a_config_and_nothing_heavy_is_loaded(command: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "mmrag_batch", *command.split(), "--keys"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^(\w+) ", done.stdout, re.M)
    assert listed == [item.name for item in fields(config_of(command))]
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert loaded & HEAVY == set()
