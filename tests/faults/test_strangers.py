"""What lies where a run would write and is not its own: nothing of it is written or removed."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.run.metrics_file import FIRST
from tests.faults.commands import Commands, Fault
from tests.faults.harness import (
    QUICK,
    call,
    contents,
    leave,
    predict,
    run,
    words,
    write_table,
)

PRECIOUS = b"what somebody has written\n"
NAMES = (
    *("out.csv", "out.csv.manifest.json", "out.csv.lock"),
    *("out.csv.store", "out.csv.store-journal", "out.csv.store-wal", "out.csv.store.mended"),
)
WAYS = ((), ("--overwrite",), ("--fresh", "--retry-errors", "--verify-inputs"))


def link(place: Path, file: Path) -> None:
    place.symlink_to(file)


def dangling_link(place: Path, file: Path) -> None:
    place.symlink_to(file.with_name("to-be-made"))


def hard_link(place: Path, file: Path) -> None:
    place.hardlink_to(file)


def folder_with_a_file(place: Path, file: Path) -> None:
    place.mkdir()
    (place / "file").write_bytes(PRECIOUS)


def empty_folder(place: Path, file: Path) -> None:
    place.mkdir()


def pipe(place: Path, file: Path) -> None:
    os.mkfifo(place)


def text(place: Path, file: Path) -> None:
    place.write_bytes(PRECIOUS)


def database(place: Path, file: Path) -> None:
    """Somebody else's, of the kind that a store is."""
    with closing(sqlite3.connect(place, isolation_level=None)) as sql:
        sql.execute("CREATE TABLE answers (precious)")


NO_FILES = (link, dangling_link, hard_link, folder_with_a_file, empty_folder, pipe)
KINDS = (*NO_FILES, text, database)
Kind = Callable[[Path, Path], None]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of 20 questions, beside one with somebody's files."""
    folder = tmp_path / "place"
    folder.mkdir()
    write_table(folder / "in.csv", 20)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_bytes(PRECIOUS)
    return folder


def refused(place: Path, *options: object) -> None:
    """A run is refused, and all that was there before is what it was."""
    before = contents(place.parent)
    code, output = call(*words(place, *options, "--quiet"))
    assert code == 73, output
    assert output.count("\n") == 1
    after = contents(place.parent)
    assert {name: after.get(name) for name in before} == before
    left = {name for name in after if name not in before and not name.endswith(".asked")}
    ours = {"place/out.csv.store", "place/out.csv.store-journal", "place/answers.store"}
    assert left <= ours


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_j12_what_is_not_ours_is_left_alone(place: Path, name: str, kind: Kind) -> None:
    kind(place / name, place.parent / "theirs" / "file")
    for options in WAYS:
        if not (name == "out.csv" and kind in (text, database) and options == ("--overwrite",)):
            refused(place, *options)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose output was complete before its table got more rows."""
    folder = tmp_path_factory.mktemp("complete")
    write_table(folder / "in.csv", 20)
    assert predict(folder, "--quiet") == 0
    write_table(folder / "in.csv", 22)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", NO_FILES)
def test_j12_what_has_taken_the_place_of_ours_is_left_alone(
    place: Path, complete: Path, name: str, kind: Kind
) -> None:
    shutil.copytree(complete, place, dirs_exist_ok=True)
    (place / name).unlink(missing_ok=True)
    kind(place / name, place.parent / "theirs" / "file")
    for options in WAYS:
        refused(place, *options)


@pytest.mark.parametrize("kind", KINDS)
def test_j12_a_store_that_was_named_is_ours_or_left_alone(place: Path, kind: Kind) -> None:
    for name in ("answers.store", "answers.store.lock"):
        kind(place / name, place.parent / "theirs" / "file")
        for options in ((), ("--fresh",)):
            refused(place, "--store", place / "answers.store", *options)
        whatever = place / name
        if whatever.is_dir() and not whatever.is_symlink():
            shutil.rmtree(whatever)
        else:
            whatever.unlink()
    refused(place, "--store", place / "in.csv")


@pytest.mark.parametrize("kind", KINDS)
def test_j12_a_file_for_metrics_holds_metrics_or_is_left_alone(place: Path, kind: Kind) -> None:
    kind(place / "mmrag.prom", place.parent / "theirs" / "file")
    refused(place, "--metrics-file", place / "mmrag.prom")


def test_j12_the_input_is_no_file_for_metrics(place: Path) -> None:
    refused(place, "--metrics-file", place / "in.csv")
    (place / "good.prom").write_text(FIRST)
    assert predict(place, "--metrics-file", place / "good.prom", "--quiet") == 0
    refused(place, "--metrics-file", place / "out.csv.store")


@pytest.mark.parametrize("kind", KINDS)
def test_j12_a_name_that_was_to_be_temporary_is_left_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """For the output, then for a manifest that was lost."""
    for number in (0, 10):
        names = map("{:08x}".format, count(number))
        monkeypatch.setattr("secrets.token_hex", lambda _, names=names: next(names))
        kind(place / f"out.csv.{number:08x}.tmp", place.parent / "theirs" / "file")
        before = contents(place.parent)
        assert predict(place, "--quiet") == 0
        assert predict(place, "--quiet") == 0
        after = contents(place.parent)
        kept = [name for name in before if name.endswith(".tmp") or "/file" in name]
        assert kept
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        (place / "out.csv.manifest.json").unlink()


@pytest.mark.parametrize("kind", NO_FILES)
def test_j12_a_file_that_a_dead_run_left_is_removed_if_it_is_still_that_file(
    commands: Commands, place: Path, kind: Kind
) -> None:
    whole = shutil.copytree(place, place.with_name("whole"))
    log = run(commands, whole, "--quiet", log=True, changes=QUICK).operations
    shutil.rmtree(whole)
    died = run(commands, place, "--quiet", fault=Fault(log.index("rename out.csv")), changes=QUICK)
    assert died.code == -signal.SIGKILL
    (left,) = place.glob("out.csv.*.tmp")
    left.unlink()
    for name in ("out.csv.lock", "out.csv.store-journal"):  # both void
        (place / name).unlink()
    kind(left, place.parent / "theirs" / "file")
    refused(place)


@pytest.mark.parametrize("name", ["out.csv.store.old-1", "out.csv.store.old-1-journal"])
@pytest.mark.parametrize("kind", KINDS)
def test_j12_answers_are_moved_to_where_nothing_is(
    commands: Commands, folder: Path, tmp_path: Path, name: str, kind: Kind
) -> None:
    leave(commands, folder, 64)
    (tmp_path / "file").write_bytes(PRECIOUS)
    kind(folder / name, tmp_path / "file")
    before = contents(tmp_path)
    store = before["folder/out.csv.store"]
    assert predict(folder, "--fresh", "--quiet") == 0
    after: dict[str, Any] = contents(tmp_path)
    assert after[f"folder/{name}"] == before[f"folder/{name}"]
    assert after["file"] == before["file"]
    assert after["folder/out.csv.store.old-2"] == store


@pytest.mark.parametrize("kind", [link, dangling_link, pipe, text])
def test_j12_a_folder_for_shards_is_one_or_is_left_alone(place: Path, kind: Kind) -> None:
    kind(place / "out.csv.shards", place.parent / "theirs" / "file")
    refused(place, "--shard", "0/2")


def test_j12_files_that_have_nothing_to_do_with_a_run_are_left_alone(place: Path) -> None:
    for name in ("out.csv.tmp", "out.csv.0123abcd", "out.csv.bak", "out.csv.storeroom", "x.lock"):
        (place / name).write_bytes(PRECIOUS)
    before = contents(place)
    for options in ((), ("--fresh",)):
        assert predict(place, *options, "--quiet") == 0
        after = contents(place)
        assert {name: after.get(name) for name in before} == before
