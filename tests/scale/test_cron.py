"""The line of examples/cron/crontab does what its comment says."""

import re
import subprocess
import sys
from pathlib import Path

CRONTAB = Path(__file__).parents[2] / "examples" / "cron" / "crontab"
FIELDS = re.compile(r"(?:[0-9*]+ ){5}")


def command() -> str:
    """What cron hands to the shell."""
    (line,) = [line for line in CRONTAB.read_text().splitlines() if FIELDS.match(line)]
    when = FIELDS.match(line)
    assert when is not None
    assert re.fullmatch(r"[0-9]+ [0-9]+ \* \* \* ", when[0])
    assert "%" not in line  # which cron would take for a line break
    return line[when.end() :]


def run_as_cron(home: Path) -> "subprocess.CompletedProcess[str]":
    """In a bare environment, as cron does; our command is the one of this interpreter."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"HOME": str(home), "PATH": path, "MMRAG_ENGINE": "scripted"}
    return subprocess.run(
        ["/bin/sh", "-c", command()],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_line_prints_nothing_on_success_and_leaves_a_finished_table_alone(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "in.csv").write_text("question_text\nWhat?\nWhy?\n")
    first = run_as_cron(tmp_path)
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    written = (folder / "out.csv").stat().st_mtime_ns
    assert (folder / "mmrag.prom").read_text().count("\n") > 3
    again = run_as_cron(tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (folder / "out.csv").stat().st_mtime_ns == written


def test_the_line_says_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "in.csv").write_text("question\nWhat?\n")
    done = run_as_cron(tmp_path)
    assert done.returncode == 65
    assert "no column 'question_text'" in done.stderr


def test_the_docs_show_the_line_that_is_tested() -> None:
    page = CRONTAB.parents[2] / "docs" / "durable-runs.md"
    assert f"    0 2 * * * {command()}\n" in page.read_text()
