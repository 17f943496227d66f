"""Group C: disks that are full, fail or go away, and outputs that must not be touched."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrag_batch.io import disk as disks
from tests.faults.harness import (
    Disk,
    call,
    committed,
    end,
    failing_disk,
    predict,
    start,
    wait_for,
    write_table,
)


def fail(folder: Path, at: int, kind: int, only: str) -> tuple[int, str]:
    """A run whose disk fails from its operation `at` on; exit code and output."""
    with failing_disk(Disk(at, kind, only)):
        return call("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")


def count(folder: Path, only: str) -> int:
    """How many operations of a kind a whole run has."""
    with failing_disk(Disk(only=only)) as disk:
        assert predict(folder, "--quiet", output="counted.csv") == 0
    return len(disk.log)


@pytest.mark.parametrize(
    ("number", "only"),
    [(errno.ENOSPC, "write"), (errno.EDQUOT, "write"), (errno.ENOSPC, "replace")],
)
def test_c01_a_disk_that_is_full_at_any_write_costs_no_committed_row(
    folder: Path, expected: dict[int, bytes], number: int, only: str
) -> None:
    for at in range(count(folder, only)):
        before = committed(folder)
        code, output = fail(folder, at, number, only)
        if code == 0:  # the runs before have left less to do than there are writes
            break
        assert code == 74, output
        assert os.strerror(number) in output
        assert committed(folder) >= before
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


@pytest.mark.parametrize("only", ["write", "fsync", "replace"])
def test_c02_a_disk_that_is_full_at_the_end_leaves_an_old_or_a_whole_output(
    folder: Path, expected: dict[int, bytes], only: str
) -> None:
    total = count(folder, only)
    out = folder / "out.csv"
    seen = set()
    for at in range(max(0, total - 4), total):
        out.write_bytes(b"old")
        with failing_disk(Disk(at, errno.ENOSPC, only)):
            assert predict(folder, "--overwrite", "--quiet") == 74
        seen.add(out.read_bytes())
        assert predict(folder, "--overwrite", "--quiet") == 0
        assert out.read_bytes() == expected[200]
        (folder / "out.csv.manifest.json").unlink()
    assert b"old" in seen
    assert seen <= {b"old", expected[200]}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_c03_after_an_fsync_that_fails_nothing_more_is_written(
    folder: Path, expected: dict[int, bytes], number: int
) -> None:
    """The kernel may drop what it could not write, and report the next fsync as good."""
    for at in range(count(folder, "fsync")):
        disk = Disk(at, number, "fsync")
        with failing_disk(disk):
            assert predict(folder, "--quiet") == 74
        assert disk.failed is not None
        assert disk.after == []
        assert predict(folder, "--quiet") == 0
        assert (folder / "out.csv").read_bytes() == expected[200]
        for name in ("out.csv", "out.csv.manifest.json"):
            (folder / name).unlink()


def test_c04_an_output_folder_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    write_table(folder / "in.csv", 2000)
    process = start(folder, script={"delay": 0.01})
    wait_for(lambda: committed(folder) >= 64)
    shutil.rmtree(folder)
    code, output = end(process)
    assert code == 74, output
    assert "Traceback" not in output


def test_c05_an_output_folder_that_cannot_be_written_to_is_told_before_models_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("mmrag_batch.run.predict.open_stages")
    for place, words in (
        (folder / "none" / "out.csv", "mkdir -p"),
        (Path("/proc/out.csv"), "/proc"),
    ):
        code, output = call("predict", folder / "in.csv", place)
        assert (code, words in output) == (73, True)


def test_c06_the_input_is_never_the_output(folder: Path) -> None:
    table = folder / "in.csv"
    before = table.read_bytes()
    (folder / "hard.csv").hardlink_to(table)
    (folder / "soft.csv").symlink_to(table)
    for name in ("in.csv", "hard.csv", "soft.csv"):
        assert predict(folder, "--overwrite", output=name) == 73
    assert table.read_bytes() == before


def test_c07_an_output_that_no_run_wrote_is_kept_unless_it_is_to_be_replaced(
    folder: Path, expected: dict[int, bytes]
) -> None:
    (folder / "out.csv").write_text("precious")
    assert predict(folder) == 73
    assert (folder / "out.csv").read_text() == "precious"
    assert predict(folder, "--overwrite", "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_c08_every_file_of_a_run_is_beside_its_output(folder: Path, tmp_path: Path) -> None:
    """So no rename crosses a file system."""
    with failing_disk(Disk()) as disk:
        assert predict(folder, "--quiet") == 0
    assert not [line for line in disk.log if "tmp" in line.split()[1]]
    assert {file.parent for file in folder.rglob("*")} == {folder}


def test_c08_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fsync)
    number = errno.EINVAL
    disks.sync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        disks.sync_folder(tmp_path)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own, with 48 files at most."""
    folder = Path(tempfile.mkdtemp())
    words = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=12", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_c01_a_real_disk_that_is_full_is_told_and_goes_on_when_there_is_room(
    small_disk: Path, folder: Path, expected: dict[int, bytes]
) -> None:
    table = write_table(folder / "in.csv", 2000)
    words = ("predict", table, small_disk / "out.csv", "--engine", "scripted")
    code, output = call(*words)
    assert (code, "No space left on device" in output) == (74, True)
    rows = committed(small_disk)
    assert 0 < rows < 2000
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert call(*words)[0] == 0
    assert (small_disk / "out.csv").read_bytes() == expected[2000]


def test_c10_a_disk_without_room_for_another_file_is_told(small_disk: Path, folder: Path) -> None:
    for number in range(100):
        try:
            (small_disk / str(number)).touch()
        except OSError:
            break
    (small_disk / "0").unlink()  # room for the lock alone
    code, output = call(
        "predict", folder / "in.csv", small_disk / "out.csv", "--engine", "scripted"
    )
    assert code in (73, 74), output
    assert "No space left on device" in output
    for number in range(1, 8):
        (small_disk / str(number)).unlink()
    assert (
        call("predict", folder / "in.csv", small_disk / "out.csv", "--engine", "scripted")[0] == 0
    )
