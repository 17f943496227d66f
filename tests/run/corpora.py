"""A corpus of facts, questions about them, and the commands that bring them together."""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch.cli.app import app

COSTS = {f"star {n}": f"The red star of {n} costs {n} coins." for n in range(2, 14)}


def call(
    *words: object, script: Mapping[str, object] | None = None, **environ: str
) -> tuple[int, str]:
    """The exit code and what is said."""
    environ |= {} if script is None else {"SCRIPTED_ENGINE": json.dumps(script)}
    done = CliRunner().invoke(app, [str(word) for word in words], env=environ)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def index(folder: Path, documents: Mapping[str, str], *options: str, out: str = "corpus") -> str:
    """Make the corpus of these texts, by their ids; what is said."""
    with (folder / "docs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "text"), *documents.items()])
    code, said = call("index", folder / "docs.csv", folder / out, *options)
    assert code == 0, said
    return said


def write_rows(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """The table of questions, each with choices unless it has its own."""
    lines = [json.dumps({"answer_choices": ["yes", "no"], **row}) for row in rows]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")


def answer(
    folder: Path, corpus: object, *options: object, output: str, codes: Collection[int] = (0,)
) -> tuple[list[dict[str, str]], list[int]]:
    """The rows of the output, and the numbers of those that the engine was asked."""
    log = folder / "asked"
    log.unlink(missing_ok=True)
    words = ("predict", folder / "in.jsonl", folder / output, "--engine", "scripted")
    code, said = call(*words, "--corpus", corpus, *options, script={"log": str(log)})
    assert code in codes, said
    asked = [int(line) for line in log.read_text().splitlines()] if log.exists() else []
    with (folder / output).open(newline="") as stream:
        return list(csv.DictReader(stream)), sorted(asked)


def evidence(row: Mapping[str, str]) -> list[str]:
    """The ids of a row's evidence, best first."""
    return [item["id"] for item in json.loads(row["evidence"])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus, and questions about it."""
    index(tmp_path, COSTS)
    write_rows(
        tmp_path, [{"question_text": f"What does the red star of {n} cost?"} for n in range(2, 10)]
    )
    return tmp_path
