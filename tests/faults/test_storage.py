"""Group C: disks that are full, fail or go away, and outputs that must not be touched."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrag_batch.run import files
from tests.faults.commands import Commands, Fault
from tests.faults.harness import (
    DONE,
    QUICK,
    asked,
    begin,
    call,
    committed,
    each,
    identity,
    names,
    predict,
    run,
    telling,
    wait_for,
    write_table,
)

FEW = {**QUICK, "commit_rows": 16}
"""With these, 50 rows are as many commits as 200."""


def fifty(folder: Path) -> Path:
    """The same folder with a table of 50 rows."""
    write_table(folder / "in.csv", 50)
    return folder


def find_operations(commands: Commands, folder: Path, only: str) -> tuple[str, ...]:
    """The operations of a kind that a whole run has."""
    place = shutil.copytree(folder, folder.with_name("counted"))
    fault = Fault(-1, only=only)
    done = run(commands, place, "--overwrite", "--quiet", fault=fault, log=True, changes=FEW)
    assert done.code == 0
    shutil.rmtree(place)
    return done.operations


def copy(folder: Path, at: int) -> Path:
    return shutil.copytree(folder, folder.with_name(f"at-{at}"))


@pytest.mark.parametrize(
    ("number", "only", "step"),
    [
        (errno.ENOSPC, "write", 1),
        (errno.EDQUOT, "write", 9),
        (errno.EIO, "write", 9),
        (errno.ENOSPC, "create,rename,unlink,truncate", 1),
    ],
)
def test_c01_a_disk_that_fails_at_any_write_costs_no_committed_row(
    commands: Commands,
    folder: Path,
    expected: dict[int, bytes],
    number: int,
    only: str,
    step: int,
) -> None:
    places = telling(find_operations(commands, fifty(folder), only))

    def fail(at: int) -> None:
        place = copy(folder, at)
        done = run(commands, place, "--quiet", fault=Fault(at, number, only), changes=FEW)
        before = committed(place)
        # At its beginning it cannot make its lock; at its end only the lock is left to remove.
        assert done.code == 74 or (done.code == 73 and at < 2) or (done.code == 0 and at > 2), (
            at,
            done.output,
        )
        assert "Traceback" not in done.output
        if done.code:
            (line,) = done.output.splitlines()
            full = os.strerror(number) in line or "disk is full" in line
            assert full or "disk I/O error" in line or "unable to open" in line, line
        assert run(commands, place, "--quiet", changes=FEW).code == 0
        assert (place / "out.csv").read_bytes() == expected[50]
        assert len(asked(place)) == 50 - before
        shutil.rmtree(place)

    assert each(fail, places[::step]) > 5


@pytest.mark.parametrize("only", ["write,create", "sync", "rename"])
def test_c02_a_disk_that_is_full_at_the_end_leaves_an_old_or_a_whole_output(
    commands: Commands, folder: Path, expected: dict[int, bytes], only: str
) -> None:
    """All is answered; what is left is to publish it over another file."""
    assert predict(fifty(folder), "--quiet") == 0
    (folder / "out.csv").write_bytes(b"old")
    places = telling(find_operations(commands, folder, only))
    seen = set()

    def fail(at: int) -> None:
        place = copy(folder, at)
        options = ("--overwrite", "--quiet")
        done = run(commands, place, *options, fault=Fault(at, errno.ENOSPC, only), changes=FEW)
        assert done.code == 74 or at < 2, done.output
        seen.add((place / "out.csv").read_bytes())
        assert run(commands, place, *options, changes=FEW).code == 0
        assert (place / "out.csv").read_bytes() == expected[50]
        assert names(place) == DONE
        shutil.rmtree(place)

    assert each(fail, places) >= 2
    assert b"old" in seen
    assert seen <= {b"old", expected[50]}


UNDO = {
    *("write out.csv.store", "truncate out.csv.store", "sync out.csv.store"),
    *("write out.csv.store-journal", "unlink out.csv.store-journal"),
    *("sync out.csv.store-journal", "unlink out.csv.lock"),
}
"""What may be tried when a commit has failed: to undo it, and to leave."""


@pytest.mark.parametrize(("number", "step"), [(errno.EIO, 1), (errno.ESTALE, 5)])
def test_c03_after_a_sync_that_fails_nothing_is_taken_for_written(
    commands: Commands, folder: Path, expected: dict[int, bytes], number: int, step: int
) -> None:
    """The kernel may drop what it could not write, and report the next sync as good."""
    place = shutil.copytree(fifty(folder), folder.with_name("whole"))
    log = run(commands, place, "--quiet", log=True, changes=FEW).operations
    syncs = [at for at, what in enumerate(log) if what.startswith("sync ")]

    def fail(at: int) -> None:
        place = copy(folder, at)
        fault = Fault(at, number)
        done = run(commands, place, "--quiet", fault=fault, log=True, changes=FEW)
        assert done.code == 74, done.output
        before = committed(place)
        assert done.operations[at].split()[0] == "sync"
        assert {*done.operations[at + 1 :]} <= UNDO, done.operations[at:]
        assert run(commands, place, "--quiet", changes=FEW).code == 0
        assert len(asked(place)) == 50 - before
        assert (place / "out.csv").read_bytes() == expected[50]
        shutil.rmtree(place)

    assert each(fail, syncs[::step]) > 8


def test_c03_a_sync_that_fails_ends_the_run(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    """All else works, so that what is to be undone is."""
    places = telling(find_operations(commands, fifty(folder), "sync"))

    def fail(at: int) -> None:
        place = copy(folder, at)
        fault = Fault(at, errno.EIO, "sync")
        assert run(commands, place, "--quiet", fault=fault, changes=FEW).code == 74
        assert run(commands, place, "--quiet", changes=FEW).code == 0
        assert (place / "out.csv").read_bytes() == expected[50]
        assert names(place) == DONE
        shutil.rmtree(place)

    assert each(fail, places[::3]) > 8


def test_c04_an_output_folder_that_vanishes_ends_the_run(commands: Commands, folder: Path) -> None:
    running = begin(commands, folder, script={"delay": 0.01})
    wait_for(lambda: committed(folder) >= 64)
    shutil.rmtree(folder)
    done = running.wait()
    assert done.code == 74, done.output
    assert "Traceback" not in done.output


def test_c05_an_output_folder_that_cannot_be_written_to_is_told_before_models_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("mmrag_batch.run.predict.find_stages")
    for place, text in (
        (folder / "none" / "out.csv", "mkdir -p"),
        (Path("/proc/out.csv"), "/proc"),
    ):
        code, output = call("predict", folder / "in.csv", place)
        assert (code, text in output) == (73, True)


def test_c06_the_input_is_never_the_output(folder: Path) -> None:
    table = folder / "in.csv"
    before = table.read_bytes()
    (folder / "hard.csv").hardlink_to(table)
    (folder / "soft.csv").symlink_to(table)
    for name in ("in.csv", "hard.csv", "soft.csv"):
        for options in ((), ("--overwrite",), ("--fresh",)):
            assert predict(folder, *options, output=name) == 73
    assert table.read_bytes() == before


def test_c07_an_output_that_no_run_wrote_is_kept_unless_it_is_to_be_replaced(
    folder: Path, expected: dict[int, bytes]
) -> None:
    out = folder / "out.csv"
    out.write_text("precious")
    before = identity(out)
    for options in ((), ("--fresh",), ("--retry-errors",)):
        assert predict(folder, *options) == 73
    assert identity(out) == before
    assert predict(folder, "--overwrite", "--quiet") == 0
    assert out.read_bytes() == expected[200]


def test_c08_every_file_of_a_run_is_beside_its_output(commands: Commands, folder: Path) -> None:
    """So no rename crosses a file system."""
    (folder / "deep").mkdir()
    done = run(commands, folder, "--quiet", output="deep/out.csv", log=True, changes=QUICK)
    assert done.code == 0
    written = {what.split()[1] for what in done.operations if what.split()[0] != "sync"}
    assert written
    assert all(name.startswith("out.csv") for name in written)
    assert names(folder) == {"in.csv", "deep"}
    assert names(folder / "deep") == DONE - {"in.csv"}


def test_c08_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fsync)
    number = errno.EINVAL
    files.sync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_folder(tmp_path)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, with a dozen files at most."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k,nr_inodes=12", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root may mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_c01_a_real_disk_that_is_full_is_told_and_goes_on_when_there_is_room(
    small_disk: Path, folder: Path, expected: dict[int, bytes]
) -> None:
    table = write_table(folder / "in.csv", 600)
    typed = ("predict", table, small_disk / "out.csv", "--engine", "scripted", "--quiet")
    code, output = call(*typed)
    assert (code, "full" in output, "Make room" in output) == (74, True, True)
    rows = committed(small_disk)
    assert 0 < rows < 600
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert call(*typed)[0] == 0
    assert (small_disk / "out.csv").read_bytes() == expected[600]


def test_c10_a_disk_without_room_for_another_file_is_told(small_disk: Path, folder: Path) -> None:
    typed = ("predict", folder / "in.csv", small_disk / "out.csv", "--engine", "scripted")
    for number in range(100):
        try:
            (small_disk / str(number)).touch()
        except OSError:
            break
    for free in range(1, 4):  # the lock, the store, its journal
        (small_disk / str(free)).unlink()
        code, output = call(*typed, "--quiet")
        assert code in (73, 74), output
        assert output.count("\n") == 1
        assert "No space left on device" in output or "unable to open" in output, output
    for number in range(4, 9):
        (small_disk / str(number)).unlink()
    assert call(*typed)[0] == 0
