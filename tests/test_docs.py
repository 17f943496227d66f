"""Every command that README and docs name is run or, where it trains, shown to be one that can."""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.main import get_group
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.cli.demo import demo
from mmrag_batch.cli.making import CONFIGS, config_of
from mmrag_batch.cli.models import train
from mmrag_batch.declare import load_config
from mmrag_batch.machine import extras
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.names import parse_names, tell_columns
from mmrag_batch.table.rows import read_header, read_rows
from mmrag_batch.table.truth import read_labelled_rows
from tests.site import LINK

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"^    ((?:mmrag-batch|python) .*)$|`((?:mmrag-batch|python) [^`]+)`", re.M)
GROUPS = {"train": train, "demo": demo}
TABLES_OF = {
    *("index", "predict", "merge", "validate", "evaluate", "calibrate"),
    *("status", "explain", "report"),
}
PACKAGES = ("mmrag_batch", "train", "export")
ALL_AT_ONCE = (ROOT / "docs" / "your-data.md").read_text().partition("## All of it at once")[2]
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text().partition("## A page of it all")[0]


def named_commands(pages: Sequence[Path] = PAGES) -> list[list[str]]:
    """The words of each command of ours in blocks and in running text, in order of appearance."""
    found = [line or inline for page in pages for line, inline in COMMAND.findall(page.read_text())]
    words = [tuple(shlex.split(command, comments=True)) for command in found]
    return [list(command) for command in dict.fromkeys(words)]


def on_tables(*, engine: str | None = None) -> list[list[str]]:
    """The commands that take a table, and name that engine; those without take seconds. And what
    says whether they can run."""
    return [
        words
        for words in named_commands()
        if words[0] == "mmrag-batch" and words[1] in TABLES_OF | {"doctor"}
        if len(words) > 2 or words[1] == "doctor"
        if words[1:2] != ["doctor"] or "--bundle" not in words
        if "qdrant+" not in " ".join(words)  # run/test_qdrant.py has a server
        if "--ray" not in words
        if (words[words.index("--engine") + 1] if "--engine" in words else None) == engine
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a reader of the README has: the examples, a table and a bundle of their own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "examples" / "demo" / "images", tmp_path / "images")
    shutil.copy(ROOT / "examples" / "demo" / "questions.csv", tmp_path / "in.csv")
    table = (tmp_path / "in.csv").read_text()
    names = {"question_image": "image", "label": "answer"}
    for ours, theirs in names.items():
        table = table.replace(f",{ours},", f",{theirs},", 1)
    (tmp_path / "others.csv").write_text(table)
    (documents,) = re.findall(
        r"^```csv\n(.*?)^```", (ROOT / "docs" / "corpus.md").read_text(), re.M | re.S
    )
    (tmp_path / "docs.csv").write_text(documents)
    shutil.copytree(DEMO_BUNDLE, tmp_path / "my-bundle")
    return tmp_path


def test_the_commands_on_tables_run_as_they_are_written(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    assert len(on_tables()) >= 4
    said = run_all(on_tables(), checkout, run_here)
    for block in re.findall(r"^```text\n(.*?)^```", EVALUATION + ALL_AT_ONCE, re.M | re.S):
        assert block.strip() in said
    with (checkout / "mixed.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in re.findall(r"^\| .*\? \|.*$", ALL_AT_ONCE, re.M)
    ]
    shown = [(question, *rest) for question, _, _, *rest in cells]
    assert shown == [
        (
            row["question"],
            row["answer"],
            row["prediction"],
            ", ".join(f"`{item['id']}`" for item in json.loads(row["evidence"])),
        )
        for row in rows
    ]


@pytest.mark.vllm
def test_the_commands_that_name_vllm_run_as_they_are_written(checkout: Path) -> None:
    assert on_tables(engine="vllm")
    run_all(on_tables(engine="vllm"), checkout, partial(run_there, checkout))


Run = Callable[[list[str], Mapping[str, str]], tuple[int, str]]


def run_here(arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """A command in this process, which has the models' libraries loaded."""
    done = CliRunner().invoke(app, arguments, env=dict(environ))
    return done.exit_code, f"{done.output}{done.exception or ''}"


def run_there(folder: Path, arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """A command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mmrag_batch", *arguments],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def run_all(commands: list[list[str]], checkout: Path, run: Run) -> str:
    """Run commands as a reader would, each in turn; every one must succeed. All that they say."""
    output = ""
    for words in commands:
        if words[1] == "predict":
            for file in checkout.glob("out.csv*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        for command in all_shards(words):
            environ = {"MMRAG_ENGINE": "scripted"} if "--shard" in command else {}
            code, said = run(command[1:], environ)
            assert code == 0, (command, said)
            output += said
        if words[1] in {"predict", "merge"} and "out.csv" in words and "--shard" not in words:
            assert len((checkout / "out.csv").read_text().splitlines()) == 61
            shutil.copy(checkout / "out.csv", checkout / "before.csv")  # what pages compare with
    return output


def all_shards(words: list[str]) -> list[list[str]]:
    """The command, and what a page leaves to its reader: the same for the other shards."""
    if "--shard" not in words:
        return [words]
    before, shard = words[:-1], words[-1]
    count = int(shard.partition("/")[2])
    return [[*before, f"{index}/{count}"] for index in range(count)]


def test_the_commands_that_train_and_export_name_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    others = [
        words
        for words in named_commands()
        if words not in on_tables() and "vllm.entrypoints" not in " ".join(words)
    ]  # vLLM's server is started by tests/families/vllm_plugin/test_server.py
    assert len(others) >= 5
    for words in others:
        if words[0] == "mmrag-batch":  # `--help` has every other word parsed, and nothing run
            first = ["--help"] if words[1].startswith("-") else []
            code, said = run_here([*first, *words[1:], "--help"], {})
            assert code == 0, (words, said)
        if words[0] == "python" and words[1] == "-m":
            name, arguments = words[2], words[3:]
            program = f"{name}.__main__" if (ROOT / name).is_dir() else name
            assert callable(importlib.import_module(program).main), words
        elif words[0] == "python":
            assert Path(words[1]).is_file(), words
            continue
        elif words[1] in {"train", "demo"} and len(words) > 2:
            name, arguments = " ".join(words[1:3]), words[3:]
            assert words[2] in get_group(GROUPS[words[1]]).commands, words
        else:
            name, arguments = words[1], words[2:]
        for file in arguments:
            if file.endswith(".yaml"):
                load_config(Path(file), config_of(name))


EXTRAS = re.compile(r"(?:\.|\.whl|mmrag-batch)\[([\w, -]+)\]")


def test_every_extra_that_a_page_names_can_be_installed() -> None:
    texts = [page.read_text() for page in (*LINKING, *sorted(ROOT.glob("requirements/*.txt")))]
    named = {name for text in texts for names in EXTRAS.findall(text) for name in names.split(",")}
    assert {"cpu", "gpu", "train-4bit", "report"} <= named <= extras().keys()


def test_no_line_installs_from_an_index_what_is_on_none() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    for file in (*LINKING, *files):
        assert not re.search(r"pip install[^`\n]*mmrag-batch\[", file.read_text()), file


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


LINKING = (*PAGES, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")))


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """Those of prose; tests/faults/table.py makes and checks the tables of cases."""
    prose = page.read_text().partition("<!-- made by")[0]
    assert not [link for link in LINK.findall(prose) if not (page.parent / link).exists()]


def test_the_tree_has_a_line_for_each_module() -> None:
    tree = re.findall(r"^    ( *)(\S+)(?:  |$)", section("What is where"), re.M)
    folders: list[str] = []
    named = set()
    for indent, name in tree:
        folders[len(indent) // 2 :] = [name]
        if name.endswith(".py"):
            named.add("".join(folders))
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert named == {
        file.relative_to(ROOT).as_posix() for file in files if not file.name.startswith("__")
    }


def test_each_answer_to_a_question_is_held_by_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "faq.md").read_text()
    answers = text.split("\n### ")[1:]
    held = [re.findall(r"test_\w+", one.partition("<!-- tests:")[2]) for one in answers]
    assert len(answers) >= 20
    assert all(held)
    files = [*(ROOT / "tests").rglob("test_*.py")]
    known = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert not {name for names in held for name in names} - known


def test_who_cites_names_what_is_packaged() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == project["name"]
    assert citation["abstract"] == project["description"]
    assert citation["license"] == project["license"]
    assert citation["keywords"] == project["keywords"]
    assert citation["message"]
    assert citation["authors"]


def section(title: str) -> str:
    """What ARCHITECTURE.md says under a title."""
    _, _, rest = (ROOT / "ARCHITECTURE.md").read_text().partition(f"## {title}\n")
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("file", sorted((ROOT / "train" / "configs").glob("*.yaml")), ids=str)
def test_a_config_begins_with_the_command_that_runs_it(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    name, _, config = first.removeprefix("# mmrag-batch ").rpartition(" ")
    assert ROOT / config == file
    assert name in CONFIGS
    load_config(file, config_of(name))


def test_the_table_of_the_readme_is_one_that_predict_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    (row,) = read_labelled_rows(tmp_path / "in.csv")
    assert row.error is None
    assert row.question is not None
    assert len(row.question.documents) == len(row.question.choices) == 3
    assert row.question.label == 1


TABLE = re.compile(r"^```(csv|jsonl)(?: columns=(\S+))?\n(.*?)^```", re.M | re.S)
TABLES = TABLE.findall((ROOT / "docs" / "your-data.md").read_text())


@pytest.mark.parametrize(("suffix", "columns", "text"), TABLES)
def test_the_tables_of_your_data_are_read_without_a_word(
    tmp_path: Path, suffix: str, columns: str, text: str
) -> None:
    path = tmp_path / f"in.{suffix}"
    path.write_text(text)
    rows = list(read_rows(path, names=parse_names(columns)))
    assert rows
    assert [(row.error, row.notes) for row in rows] == [(None, [])] * len(rows)
    assert not tell_columns(read_header(path, parse_names(columns)), parse_names(columns))
    if columns:
        assert rows[0].question is not None
        assert rows[0].question.documents
