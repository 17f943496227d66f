"""The lines of examples/cron/crontab do what its comment says, night after night."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.run.files import Paths
from tests.faults.commands import Commands, why_not
from tests.run.parts import Place, call, count, wait_for

CRONTAB = Path(__file__).parents[2] / "examples" / "cron" / "crontab"
LINE = re.compile(r"^(# )?([0-9]+ [0-9]+ \* \* \*) (.*)$", re.M)
COMMANDS = why_not()


def find_command(*, dated: bool = False) -> str:
    """What cron hands to the shell for the line, or for the one in its comment: it takes a `%` for
    a line break, unless there is a backslash before it."""
    (line,) = [line for mark, _, line in LINE.findall(CRONTAB.read_text()) if bool(mark) == dated]
    assert re.search(r"(?<!\\)%", line) is None
    return str(line).replace("\\%", "%")


class Nights:
    """A home with a folder of questions, and cron that comes by."""

    def __init__(self, home: Path, command: str) -> None:
        folder = home / "questions"
        folder.mkdir()
        self.place = Place(folder)
        self._home = home
        self._command = command

    def write(self, rows: Iterable[str], *, name: str = "in.csv") -> None:
        """Write a table of questions; `What? | a.png` names an image."""
        cells = (row.partition(" | ") for row in rows)
        lines = [f"{text},{image}" for text, _, image in cells]
        (self.place.folder / name).write_text(
            "\n".join(["question_text,question_image", *lines, ""])
        )

    def run(self, *, date: str = "") -> "subprocess.CompletedProcess[str]":
        """In a bare environment, as cron does; our command is the one of this interpreter."""
        programs = self._home / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "date").write_text(f'#!/bin/sh\n[ "$1" = +%F ] && echo {date}\n')
        (programs / "date").chmod(0o755)
        path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
        return subprocess.run(
            ["/bin/sh", "-c", self._command],
            env={"HOME": str(self._home), "PATH": path} | self.place.environ(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )

    def expected(self, name: str) -> bytes:
        """What a run without a past writes."""
        output = self._home / "alone.csv"
        root = ("--image-root", self.place.folder)
        words = ("predict", self.place.folder / name, output, "--engine", "scripted", "--fresh")
        assert call(*words, *root).exit_code in (0, 3)
        return output.read_bytes()

    def check(self, asked: Iterable[int], *, date: str = "") -> None:
        """Whether the output is right, and only these rows were asked."""
        assert self.place.asked() == dict.fromkeys(asked, 1)
        output = self.place.folder / f"out{date}.csv"
        assert output.read_bytes() == self.expected(f"in{date}.csv")


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path, find_command())


def told(done: "subprocess.CompletedProcess[str]") -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def test_m02_a_table_that_changes_is_answered_every_night(nights: Nights) -> None:
    rows = [f"What is {number}?" for number in range(10)]
    nights.write(rows)
    assert told(nights.run()) == (0, "", "")
    nights.check(range(10))
    assert (nights.place.folder / "mmrag.prom").read_text().count("\n") > 3

    written = nights.place.output.stat().st_mtime_ns
    assert told(nights.run()) == (0, "", "")
    nights.check([])
    assert nights.place.output.stat().st_mtime_ns == written

    rows = [*rows[:3], "What was 3?", *rows[5:], "Why?", "When?"]
    nights.write(rows)
    assert told(nights.run()) == (0, "", "")
    nights.check([3, 9, 10])

    rows = rows[::-1]
    nights.write(rows)
    assert told(nights.run()) == (0, "", "")
    nights.check([])


def test_m02_rows_that_fail_are_mailed_in_one_line_with_the_next_command(nights: Nights) -> None:
    rows = ["What?", "Who? | late.png", "Why?"]
    nights.write(rows)
    first = nights.run()
    assert (first.returncode, first.stdout) == (3, "")
    (line,) = first.stderr.splitlines()
    assert "1 of 3 rows have no answer (image_missing 1), the first in line 3" in line
    nights.check([0, 2])
    again = nights.run()
    assert told(again) == told(first)
    nights.check([])

    Image.new("RGB", (8, 8)).save(nights.place.folder / "late.png")
    (command,) = re.findall("run `(.*)`", line)
    words = [sys.executable, "-m", "mmrag_batch", *shlex.split(command)[1:]]
    environ = os.environ | nights.place.environ()
    subprocess.run(words, cwd=nights.place.folder, env=environ, check=True, capture_output=True)
    nights.check([1])
    assert told(nights.run()) == (0, "", "")

    nights.write([*rows, "Which? | lost.png"])
    assert nights.run().returncode == 3
    nights.check([])
    nights.write([*rows, "Which?"])
    assert told(nights.run()) == (0, "", "")
    nights.check([3])


def test_m02_a_table_that_cannot_be_read_is_mailed_and_the_output_kept(nights: Nights) -> None:
    nights.write(["What?"])
    assert told(nights.run()) == (0, "", "")
    before = nights.place.output.read_bytes()
    nights.place.table.write_text("question\nWhat?\n")
    done = nights.run()
    assert (done.returncode, done.stdout) == (65, "")
    assert "no column 'question_text'" in done.stderr
    assert nights.place.output.read_bytes() == before


@pytest.mark.skipif(COMMANDS is not None, reason=str(COMMANDS))
def test_m02_a_run_that_is_still_going_is_left_alone(nights: Nights) -> None:
    nights.write([f"What is {number}?" for number in range(10)])
    with Commands() as commands:
        running = nights.place.start(commands, "--metrics-file", "mmrag.prom", hang=[4])
        wait_for(lambda: count(Paths.of(nights.place.output).store) == 4)
        metrics = (nights.place.folder / "mmrag.prom").read_text()
        assert told(nights.run()) == (0, "", "")
        assert (nights.place.folder / "mmrag.prom").read_text() == metrics
        assert not nights.place.output.exists()
        running.send_signal(signal.SIGTERM)
        assert running.wait().code == 75
    assert told(nights.run()) == (0, "", "")
    nights.check(range(10))


def test_m02_tables_of_every_night_share_what_was_answered(tmp_path: Path) -> None:
    nights = Nights(tmp_path, find_command(dated=True))
    tables = {
        "2026-11-26": (["What?", "Why?", "Who?"], [0, 1, 2]),
        "2026-11-27": (["Why?", "When?", "What?"], [1]),
        "2026-11-28": (["When?", "Who?"], []),
    }
    for date, (rows, asked) in tables.items():
        nights.write(rows, name=f"in-{date}.csv")
        assert told(nights.run(date=date)) == (0, "", "")
        nights.check(asked, date=f"-{date}")
    for date in tables:
        assert told(nights.run(date=date)) == (0, "", "")
        nights.check([], date=f"-{date}")
    stores = {file.name for file in nights.place.folder.glob("*.store*")}
    assert stores == {"answers.store"}


def test_the_docs_show_the_line_that_is_tested() -> None:
    page = CRONTAB.parents[2] / "docs" / "durable-runs.md"
    assert f"    0 2 * * * {find_command()}\n" in page.read_text()
