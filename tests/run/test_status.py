"""What `status` says of a run that is under way, finished, stopped or not there."""

import csv
import gzip
import io
import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import Result

from mmrag_batch.run.database import APPLICATION
from mmrag_batch.run.files import Paths
from mmrag_batch.run.lock import hold_lock
from mmrag_batch.run.shards import Shard, shard_paths
from tests.faults.commands import Commands, Running
from tests.run.parts import ROWS, Place, call, count, is_alive, questions, wait_for, whole

FAILED = 4
"""A row that does not fit into memory."""
STUCK = 8
"""A row that never gets an answer."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.write(questions())
    return place


@pytest.fixture
def running(place: Place, commands: Commands) -> Iterator[Running]:
    """A run that has answered eight rows of forty, of which one has failed, and stays there."""
    running = place.start(commands, hang=[STUCK], oom=[FAILED])
    wait_for(lambda: count(Paths.of(place.output).store) == STUCK)
    yield running
    running.send_signal(signal.SIGKILL)
    running.wait()


def status(place: Place, *options: object) -> Result:
    return call("status", place.output, *options)


def write(place: Place, name: str, *options: object) -> Result:
    return status(place, "--write", place.folder / name, *options)


def first_rows(rows: int) -> list[str]:
    """The lines that one run writes of the first rows, of which none has failed."""
    return whole(tuple(questions())).decode().splitlines()[: rows + 1]


def test_a_run_at_work_is_shown_with_its_rows_its_rate_and_its_process(
    place: Place, running: Running
) -> None:
    done = status(place)
    assert done.exit_code == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(
        f"{place.output}: 8 of 40 rows are done (7 ok, 0 degraded, 1 error): 8 asked, 0 kept, "
    )
    assert re.search(r", [0-9,]+\.[0-9] rows/s, [0-9]+ min [0-9]+ s left\.$", first)
    assert re.fullmatch(rf"  At work: host .*, pid {running.pid}, started .*\.", second)


def test_a_run_that_was_stopped_or_killed_is_shown_with_what_to_do(
    place: Place, running: Running
) -> None:
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        running.send_signal(number)
        assert running.wait().code in (75, code)
        done = status(place)
        assert done.exit_code == 0
        assert "8 of 40 rows are done (7 ok, 0 degraded, 1 error)" in done.stdout
        assert "Nobody works on it. Run the same command again to go on." in done.stdout
        assert "At work" not in done.stdout


def test_rows_that_were_kept_are_told_from_those_that_were_asked(
    place: Place, running: Running, commands: Commands
) -> None:
    running.send_signal(signal.SIGKILL)
    running.wait()
    again = place.start(commands, "--retry-errors", hang=[12])
    wait_for(lambda: count(Paths.of(place.output).store) == 12)
    told = status(place).stdout
    again.send_signal(signal.SIGKILL)
    again.wait()
    assert "12 of 40 rows are done (12 ok, 0 degraded, 0 error): 5 asked, 7 kept" in told


def test_a_run_that_has_asked_no_row_yet_is_at_work(place: Place, commands: Commands) -> None:
    running = place.start(commands, load=600)
    looks = [status(place)]  # one may fall between two words of the holder of the lock
    while f"pid {running.pid}" not in looks[-1].stdout:
        assert len(looks) < 1000
        looks.append(status(place))
    done = looks[-1]
    running.send_signal(signal.SIGTERM)
    assert running.wait().code == 75
    assert done.exit_code == 0
    assert re.search(r"no row is asked yet|0 of 40 rows are done", done.stdout)
    assert "format" not in done.stdout


def test_a_store_that_is_just_being_made_is_no_fault_of_its_maker(place: Place) -> None:
    paths = Paths.of(place.output)
    with closing(sqlite3.connect(paths.store)) as sql:
        sql.execute(f"PRAGMA application_id = {APPLICATION}")
    assert "the run that made it has died" in status(place).stdout
    with hold_lock(paths.lock, wait=False):
        told = status(place).stdout
    assert "no row is asked yet" in told
    assert "At work" in told


def test_shards_are_shown_one_by_one_and_together(place: Place, commands: Commands) -> None:
    assert place.predict("--shard", "0/4", oom=[FAILED]).exit_code == 3
    running = place.start(commands, "--shard", "2/4", hang=[25])
    wait_for(lambda: count(shard_paths(place.output, Shard(2, 4)).store) == 5)
    during = status(place).stdout
    running.send_signal(signal.SIGTERM)
    assert running.wait().code == 75
    lines = during.splitlines()
    assert lines[0].startswith("shard 0 of 4: 10 of 10 rows are done (9 ok, 0 degraded, 1 error): ")
    assert lines[1].startswith("shard 2 of 4: 5 of 10 rows are done (5 ok, 0 degraded, 0 error): ")
    assert "  At work: host" in lines[2]
    assert lines[3].startswith(
        "2 of 4 shards: 15 of 20 rows are done (14 ok, 0 degraded, 1 error): 15 asked, 0 kept, "
    )
    assert re.search(r" rows/s, [0-9]+ min [0-9]+ s left\.$", lines[3])
    assert len(lines) == 4
    assert status(place).stdout.count("Nobody works on it") == 1


def test_shards_that_are_done_are_shown_until_they_are_merged(place: Place) -> None:
    for index in range(4):
        place.predict("--shard", f"{index}/4", oom=[FAILED])
    before = status(place).stdout.splitlines()
    assert "4 of 4 shards: 40 of 40 rows are done (39 ok, 0 degraded, 1 error)" in before[-2]
    assert before[-1] == f"  Next: mmrag-batch merge {place.output}"
    assert place.merge().exit_code == 3
    assert " of 4" not in status(place).stdout
    assert place.predict("--shard", "0/4", "--retry-errors").exit_code == 0
    after = status(place).stdout
    assert "shard 0 of 4: 10 of 10 rows are done (10 ok, 0 degraded, 0 error): 1 asked, 9" in after
    assert "shard 1" not in after


def test_a_finished_output_is_shown_with_its_first_failures(place: Place) -> None:
    assert place.predict(oom=[*range(3, 11)]).exit_code == 3
    lines = status(place).stdout.splitlines()
    assert f"{place.output}: complete since " in lines[0]
    assert ": 32 ok, 0 degraded, 8 error, " in lines[0]
    assert lines[1] == "  The last run asked 40 rows and kept 0."
    assert [line.partition(":")[0] for line in lines[2:7]] == [f"  line {n}" for n in range(5, 10)]
    assert lines[7:] == ["  ... and 3 more, in the column `error`."]


def test_d06_an_output_that_was_changed_is_told(place: Place) -> None:
    place.predict()
    with place.output.open("a") as stream:
        stream.write("one more row\n")
    done = status(place)
    assert done.exit_code == 78
    assert "complete since" in done.stdout
    assert "was changed since it was written" in done.stderr


def test_what_is_not_there_is_told(place: Place) -> None:
    done = status(place)
    assert done.exit_code == 66
    assert "is no output of a run, nor is one on its way" in done.stderr
    place.output.write_text("precious")
    assert status(place).exit_code == 66
    assert write(place, "so-far.csv").exit_code == 66
    assert not (place.folder / "so-far.csv").exists()


def test_answers_whose_output_is_gone_are_told(place: Place) -> None:
    place.predict()
    place.output.unlink()
    told = status(place).stdout
    assert "40 of 40 rows are done" in told
    assert "Run the same command again to write it." in told


def test_a_store_that_cannot_be_read_is_told(place: Place) -> None:
    place.predict("--limit", 3)
    place.output.unlink()
    Paths.of(place.output).store.write_bytes(b"no store at all")
    done = status(place)
    assert done.exit_code == 0
    assert "out.csv.store is no answer store" in done.stdout


@pytest.mark.parametrize("name", ["so-far.csv", "so-far.csv.gz", "so-far.jsonl"])
def test_the_rows_so_far_are_written_while_the_run_goes_on(
    place: Place, running: Running, name: str
) -> None:
    done = write(place, name)
    assert done.exit_code == 0, done.stderr
    assert "8 rows are answered so far (7 ok, 0 degraded, 1 error)" in done.stdout
    data = (place.folder / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith("gz") else data).decode()
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
        expected = first_rows(STUCK)
        del expected[FAILED + 1]
        assert [line for line in text.splitlines() if "engine_oom" not in line] == expected
    assert [row["note"] for row in rows] == [f"note {number}" for number in range(STUCK)]
    assert rows[FAILED]["error"].startswith("engine_oom: line 6: ")
    assert is_alive(running)
    assert {file.name for file in place.folder.glob("*so-far*")} == {name}


def test_a_run_whose_rows_were_written_goes_on_unharmed(place: Place, commands: Commands) -> None:
    running = place.start(commands, delay=0.01)
    looks = 0
    while is_alive(running):
        looks += write(place, "so-far.csv", "--overwrite").exit_code == 0
    assert running.wait().code == 0, running.output
    assert looks > 0
    assert place.output.read_bytes() == whole(tuple(questions()))
    assert set(place.asked().values()) == {1}


def test_the_rows_so_far_are_those_of_all_shards(place: Place, commands: Commands) -> None:
    for index in (3, 1):
        place.predict("--shard", f"{index}/4")
    running = place.start(commands, "--shard", "0/4", hang=[2])
    wait_for(lambda: count(shard_paths(place.output, Shard(0, 4)).store) == 2)
    assert write(place, "so-far.csv").exit_code == 0
    running.send_signal(signal.SIGTERM)
    assert running.wait().code == 75
    every = whole(tuple(questions())).decode().splitlines()
    expected = [every[0], *(every[1 + n] for n in (0, 1, *range(10, 20), *range(30, ROWS)))]
    assert (place.folder / "so-far.csv").read_text().splitlines() == expected


def test_the_rows_so_far_of_a_finished_output_are_all_of_them(place: Place) -> None:
    place.predict()
    assert write(place, "so-far.csv").exit_code == 0
    assert (place.folder / "so-far.csv").read_bytes() == place.output.read_bytes()


def test_answers_in_a_store_of_another_name_are_found_by_it(place: Place) -> None:
    shared = ("--store", place.folder / "shared.store")
    place.predict(*shared)
    every = place.output.read_bytes()
    for file in place.folder.glob("out.csv*"):
        file.unlink()
    assert status(place).exit_code == 66
    assert "Run the same command again to write it." in status(place, *shared).stdout
    assert write(place, "so-far.csv", *shared).exit_code == 0
    assert (place.folder / "so-far.csv").read_bytes() == every


def test_the_rows_so_far_are_never_written_over_something(place: Place) -> None:
    place.predict("--limit", 3)
    target = place.folder / "so-far.csv"
    target.write_text("precious")
    done = write(place, "so-far.csv")
    assert done.exit_code == 73
    assert "so-far.csv is there. Choose another file, or add `--overwrite`." in done.stderr
    assert target.read_text() == "precious"
    assert write(place, "so-far.csv", "--overwrite").exit_code == 0
    assert len(target.read_text().splitlines()) == 4
    before = {name: (place.folder / name).read_bytes() for name in ("in.csv", "out.csv")}
    for name in before:
        assert write(place, name, "--overwrite").exit_code == 73
    assert write(place, "so-far.xlsx").exit_code == 73
    assert {name: (place.folder / name).read_bytes() for name in before} == before


def test_the_rows_so_far_are_not_written_without_their_table(place: Place) -> None:
    place.predict("--limit", 3)
    place.table.unlink()
    done = write(place, "so-far.csv")
    assert done.exit_code == 66
    assert "in.csv" in done.stderr
    assert not (place.folder / "so-far.csv").exists()
