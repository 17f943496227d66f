"""What tests of runs in parts share: a table, commands on it, and what the engine was asked."""

import importlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner, Result

from mmrag_batch.cli.app import app
from mmrag_batch.errors import MmragError
from mmrag_batch.run import merge as merging
from mmrag_batch.run import plan, survey
from mmrag_batch.run import predict as predicting
from mmrag_batch.run import store as stores
from mmrag_batch.run.files import Paths
from mmrag_batch.run.lock import read_holder
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import Survey
from mmrag_batch.settings import DEMO_BUNDLE
from tests.faults.commands import Commands, Running

ROWS = 40
HEADER = "question_text,answer_choices,note"


def question(number: int, *, word: str = "costs") -> str:
    """The cells of a row."""
    return f'What {word} {number}?,"[""a"", ""b""]",note {number}'


def questions(rows: int = ROWS, *, broken: Iterable[int] = (), word: str = "costs") -> list[str]:
    """The cells of a table's rows; those in `broken` ask nothing that can be read."""
    lines = [question(number, word=word) for number in range(rows)]
    for number in broken:
        lines[number] = f"What {word} {number}?,not a list,"
    return lines


def call(*arguments: object, environ: Mapping[str, str] = {}) -> Result:
    """A command in this process; what it does not catch is raised."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, words, env=dict(environ))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@cache
def whole(lines: tuple[str, ...], name: str = "out.csv", limit: int | None = None) -> bytes:
    """What one run writes that nothing happened to."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder), name=name)
        place.write(lines)
        done = place.predict(*([] if limit is None else ["--limit", limit]))
        assert done.exit_code in (0, 3), done.stderr
        return place.output.read_bytes()


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with in.csv, what is made of it, and the log of what the engine was asked."""

    folder: Path
    name: str = "out.csv"

    @property
    def table(self) -> Path:
        return self.folder / "in.csv"

    @property
    def output(self) -> Path:
        return self.folder / self.name

    @property
    def shards(self) -> set[str]:
        """The names of what is in the folder of the shards."""
        folder = self.output.with_name(self.name + ".shards")
        return {file.name for file in folder.iterdir()} if folder.exists() else set()

    def write(self, lines: Iterable[str]) -> None:
        """Write the table."""
        self.table.write_text("\n".join([HEADER, *lines, ""]))

    def environ(self, **script: object) -> dict[str, str]:
        """What has the scripted engine log, and do what else a script says."""
        log = {"log": str(self.folder / "asked.txt")}
        return {"MMRAG_ENGINE": "scripted", "SCRIPTED_ENGINE": json.dumps(log | script)}

    def predict(
        self, *options: object, environ: Mapping[str, str] = {}, **script: object
    ) -> Result:
        """Run `predict` in this process."""
        words = ("predict", self.table, self.output, *options)
        return call(*words, environ=self.environ(**script) | dict(environ))

    def merge(self, *options: object) -> Result:
        """Run `merge` in this process."""
        return call("merge", self.output, *options)

    def start(
        self,
        commands: Commands,
        *options: object,
        environ: Mapping[str, str] = {},
        hook: str = "commit_each_row",
        hook_argument: object = None,
        **script: object,
    ) -> Running:
        """Start `predict` in a process of its own, which commits each row or has another hook."""
        words = ("predict", "in.csv", self.name, "--grace", 0, *options)
        environ = self.environ(**script) | dict(environ)
        return commands.start(
            *words,
            folder=self.folder,
            environ=environ,
            hook=f"tests.run.parts:{hook}",
            hook_argument=hook_argument,
        )

    def asked(self) -> Counter[int]:
        """How often the engine answered each row, by number, since the last look."""
        log = self.folder / "asked.txt"
        numbers = map(int, log.read_text().split()) if log.exists() else ()
        counts = Counter(numbers)
        log.unlink(missing_ok=True)
        return counts


def with_another_tower(bundle: Path) -> Path:
    """The demo bundle, copied there, whose document tower is another one."""
    shutil.copytree(DEMO_BUNDLE, bundle)
    shutil.copy(bundle / "retriever/question_tower.onnx", bundle / "retriever/document_tower.onnx")
    manifest = json.loads((bundle / "bundle.json").read_text())
    files = manifest["files"]
    files["retriever/document_tower.onnx"] = files["retriever/question_tower.onnx"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


def count(store: Path) -> int:
    """How many answers a store has, which may be about to be made."""
    with suppress(MmragError), AnswerStore(store) as opened:
        return sum(1 for _ in opened.scan())
    return 0


def wait_for(condition: Callable[[], object], *, within: float = 60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def is_alive(running: Running) -> bool:
    """Whether a process has not ended."""
    return Path("/proc", str(running.pid)).exists()


def commit_each_row(_: object = None) -> None:
    """So that who looks sees each answer at once."""
    stores.COMMIT_ROWS = 1


def array(task: int, tasks: Iterable[int], step: int = 1) -> dict[str, str]:
    """What Slurm sets for a task of an array: as for --array=1,3, where STEP is 1, unless the array
    was given with a step, as in --array=0-6:2."""
    every = sorted(tasks)
    values = {"ID": task, "MIN": every[0], "MAX": every[-1], "STEP": step, "COUNT": len(every)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def look_together(_: object = None) -> None:
    """A hook: a run that has said which rows it is at looks who else is at some when another one
    has said so too, or after a while if none does."""

    def find_others(output: Path, own: Paths, table_sha256: str) -> tuple[list[Path], list[range]]:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            locks = Paths.of(output).shards.glob("*.lock")
            if sum("rows" in read_holder(lock) for lock in locks) > 1:
                break
            time.sleep(0.01)
        return plan.find_others(output, own, table_sha256)

    vars(predicting)["find_others"] = find_others


def stay_at_survey(go_on: str) -> None:
    """A hook: a run that is about to read its table waits until there is a file `go_on`."""

    def take_survey(*arguments: Any, **options: Any) -> Survey:
        Path(f"{go_on}.wanted").touch()
        wait_for(Path(go_on).exists)
        return survey.take_survey(*arguments, **options)

    vars(predicting)["take_survey"] = take_survey


def stop_at(step: str, *, stay: float = 0.0) -> None:
    """A hook: a signal comes when the process calls a function, as in `merge:publish`."""
    module, _, name = step.partition(":")
    home = importlib.import_module(f"mmrag_batch.run.{module}")
    real = getattr(home, name)

    def stopped(*arguments: object, **options: object) -> object:
        setattr(home, name, real)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(stay)
        return real(*arguments, **options)

    setattr(home, name, stopped)


def stop_and_stay_at(step: str) -> None:
    """The same, where nothing goes on after the signal."""
    merging.GRACE = 0.0
    stop_at(step, stay=600.0)
