"""Group A: a run that dies at any point of its way is completed by the same command, byte by byte.

Death is a kill at each write, fsync and rename in turn, as SQLite tests itself, with the last write
whole, torn or lost; and `kill -9` at random moments.
"""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.io import draft, journal
from mmrag_batch.io.draft import COMMIT_ROWS
from tests.faults.harness import (
    Crash,
    Disk,
    call,
    committed,
    end,
    failing_disk,
    names,
    predict,
    start,
    wait_for,
    write_table,
)

DONE = {"in.csv", "out.csv", "out.csv.manifest.json"}


def die(folder: Path, at: int, kind: str | int = "kill", only: str | None = None) -> Disk:
    """Run until operation `at` of the disk, and die there."""
    disk = Disk(at, kind, only)
    with failing_disk(disk), pytest.raises(Crash):
        predict(folder, "--quiet")
    return disk


def operations(folder: Path) -> list[str]:
    """Everything that a whole run does to the disk."""
    with failing_disk(Disk()) as disk:
        assert predict(folder, "--quiet") == 0
    return disk.log


def clean(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "in.csv":
            file.unlink()
    for state in folder.glob("*.state"):
        state.rmdir()


@pytest.mark.parametrize("kind", ["kill", "torn", "power"])
def test_a06_a_death_at_every_write_fsync_and_rename_is_made_good(
    folder: Path, expected: dict[int, bytes], kind: str
) -> None:
    log = operations(folder)
    assert {line.split()[0] for line in log} == {"write", "fsync", "replace"}
    assert len(log) > 30
    for at, what in enumerate(log):
        clean(folder)
        disk = die(folder, at, kind)
        assert disk.failed == what
        if (folder / "out.csv").exists():
            assert (folder / "out.csv").read_bytes() == expected[200], what
        before = committed(folder)
        assert predict(folder, "--quiet") == 0, what
        assert (folder / "out.csv").read_bytes() == expected[200], what
        assert names(folder) == DONE, what
        starts = json.loads((folder / "out.csv.manifest.json").read_text())["starts"]
        assert starts[-1]["row"] in (before, 0), what


def test_a01_a_death_before_the_lock_leaves_nothing(folder: Path) -> None:
    process = start(folder)
    process.send_signal(signal.SIGKILL)  # Python has not even started
    assert end(process)[0] == -signal.SIGKILL
    assert names(folder) == {"in.csv"}
    assert predict(folder, "--quiet") == 0


def test_a02_a_lock_is_free_when_its_holder_is_dead(
    folder: Path, expected: dict[int, bytes]
) -> None:
    process = start(folder, script={"load": 60})
    wait_for((folder / "out.csv.lock").exists)
    process.kill()
    end(process)
    assert (folder / "out.csv.lock").exists()
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]
    assert names(folder) == DONE


def test_a03_torn_journal_tail(folder: Path, expected: dict[int, bytes]) -> None:
    """At every byte of the last record: it never was, and all before it is as it was."""
    log = operations(folder)
    clean(folder)
    last = max(at for at, what in enumerate(log) if what == "write out.csv.partial")
    die(folder, last + 4)  # the journal has its last commit, and is about to be finished
    path = folder / "out.csv.state" / "journal"
    whole = path.read_bytes()
    start_of_last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for length in range(start_of_last, len(whole)):
        path.write_bytes(whole[:length])
        saved = journal.read_journal(path)
        assert saved is not None
        assert (saved.commit.row, saved.valid) == (192, start_of_last)
    for length in random.Random(3).sample(range(start_of_last, len(whole)), 4):
        path.write_bytes(whole[:length])
        partial = (folder / "out.csv.partial").read_bytes()
        assert predict(folder, "--quiet") == 0
        assert (folder / "out.csv").read_bytes() == expected[200]
        path.parent.mkdir()
        (folder / "out.csv").unlink()
        (folder / "out.csv.partial").write_bytes(partial)


def test_a04_rows_that_were_written_but_not_synced_are_answered_again(
    folder: Path, expected: dict[int, bytes]
) -> None:
    log = operations(folder)
    clean(folder)
    disk = die(folder, log.index("fsync out.csv.partial"), "power")
    assert disk.failed == "fsync out.csv.partial"
    assert (folder / "out.csv.partial").read_bytes() == b""
    assert committed(folder) == 0
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_a05_rows_whose_commit_is_on_disk_are_not_answered_again(folder: Path) -> None:
    log = operations(folder)
    clean(folder)
    second = [at for at, what in enumerate(log) if what == "fsync journal"][2]
    die(folder, second + 1)
    rows = committed(folder)
    assert rows == 2 * COMMIT_ROWS
    assert predict(folder, "--quiet") == 0
    starts = json.loads((folder / "out.csv.manifest.json").read_text())["starts"]
    assert [item["row"] for item in starts] == [0, rows]


def refuse(*_: object) -> None:
    raise AssertionError("a model is loaded")


def test_a07_a_death_before_the_manifest_costs_only_the_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = operations(folder)
    sha256 = json.loads((folder / "out.csv.manifest.json").read_text())["sha256"]
    clean(folder)
    die(folder, log.index("replace out.csv") + 1)
    before = (folder / "out.csv").stat()
    assert not (folder / "out.csv.manifest.json").exists()
    monkeypatch.setattr("mmrag_batch.run.predict.open_stages", refuse)
    with failing_disk(Disk()) as disk:
        assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").stat() == before
    renames = [line.split()[1] for line in disk.log if line.startswith("replace")]
    assert renames == ["out.csv.manifest.json"]
    assert json.loads((folder / "out.csv.manifest.json").read_text())["sha256"] == sha256


@pytest.mark.parametrize("seed", range(4))
def test_a08_kills_at_random_moments_lose_nothing_and_double_nothing(
    tmp_path: Path, expected: dict[int, bytes], seed: int
) -> None:
    write_table(tmp_path / "in.csv", 2000)
    moments = random.Random(seed)
    kills = 0
    while not (tmp_path / "out.csv.manifest.json").exists():
        process = start(tmp_path, script={"delay": 0.001})  # over 2 s
        time.sleep(moments.uniform(0.2, 1.6))
        process.kill()
        code, output = end(process)
        assert code in (0, -signal.SIGKILL), output
        kills += code != 0
        assert kills < 50
    assert kills > 0
    assert predict(tmp_path, "--quiet") == 0
    assert (tmp_path / "out.csv").read_bytes() == expected[2000]


def test_a09_a_damaged_record_is_named_and_refused_until_it_is_to_be_repaired(
    folder: Path, expected: dict[int, bytes]
) -> None:
    die(folder, 20)
    path = folder / "out.csv.state" / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 4
    for place in (0, 9, 40):
        damaged = bytearray(lines[2])
        damaged[place] ^= 1
        path.write_bytes(b"".join([*lines[:2], bytes(damaged), *lines[3:]]))
        code, output = call(
            "predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted"
        )
        assert code == 70
        assert f"record 3 of {len(lines)} is damaged" in output
        assert "--repair" in output
    assert predict(folder, "--repair", "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_a10_an_empty_journal_is_a_beginning_only_where_there_are_no_rows(
    folder: Path, expected: dict[int, bytes]
) -> None:
    (folder / "out.csv.state").mkdir()
    (folder / "out.csv.state" / "journal").touch()
    (folder / "out.csv.partial").write_bytes(b"rows")
    assert predict(folder) == 70
    assert (folder / "out.csv.partial").read_bytes() == b"rows"
    (folder / "out.csv.partial").unlink()
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_a10_rows_that_are_shorter_than_the_journal_says_are_refused(folder: Path) -> None:
    die(folder, 20)
    partial = folder / "out.csv.partial"
    partial.write_bytes(partial.read_bytes()[:100])
    code, output = call("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")
    assert (code, "rows of it are gone" in output) == (70, True)


def test_a10_rows_that_are_not_what_was_written_are_not_published(folder: Path) -> None:
    die(folder, 20)
    partial = folder / "out.csv.partial"
    data = bytearray(partial.read_bytes())
    data[50] ^= 1
    partial.write_bytes(data)
    code, output = call("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")
    assert (code, "is not what was written to it" in output) == (70, True)
    assert not (folder / "out.csv").exists()


def scripted(folder: Path, script: object, *options: object) -> tuple[int, list[dict[str, Any]]]:
    """Run with an engine that misbehaves; the exit code, and the failed rows."""
    code, output = end(start(folder, *options, script=script))
    assert (folder / "out.csv").exists(), output
    errors = folder / "out.csv.errors.jsonl"
    lines = errors.read_text().splitlines() if errors.exists() else []
    return code, [json.loads(line) for line in lines]


def same_but(folder: Path, whole: bytes, *failed: int) -> bool:
    """Whether the output is as it should be in every row but those that failed."""
    got = (folder / "out.csv").read_bytes().split(b"\nq")
    return [row for row, line in enumerate(got[1:]) if line != whole.split(b"\nq")[row + 1]] == [
        *failed
    ]


def test_a11_an_engine_that_dies_once_costs_no_row(
    folder: Path, expected: dict[int, bytes]
) -> None:
    assert scripted(folder, {"crash": {"70": 1}}) == (0, [])
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_a11_a_row_that_kills_the_engine_is_found_and_costs_no_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    code, failures = scripted(folder, {"crash": {"70": 99}})
    assert (code, [(item["row"], item["code"]) for item in failures]) == (
        3,
        [(70, "engine_crashed")],
    )
    assert same_but(folder, expected[200], 70)


def test_a12_a_row_that_does_not_fit_into_memory_costs_no_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    code, failures = scripted(folder, {"oom": [3]})
    assert (code, [(item["row"], item["code"]) for item in failures]) == (3, [(3, "engine_oom")])
    assert same_but(folder, expected[200], 3)


def test_a13_a_row_at_which_the_engine_is_stuck_costs_no_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    code, failures = scripted(folder, {"hang": [199]}, "--row-timeout", 1)
    assert (code, [(item["row"], item["code"]) for item in failures]) == (3, [(199, "timeout")])
    assert same_but(folder, expected[200], 199)


def test_a14_a_process_that_the_kernel_kills_is_as_any_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    process = start(folder, script={"delay": 0.005})
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    process.kill()  # what the out-of-memory killer sends
    assert end(process)[0] == -signal.SIGKILL
    rows = committed(folder)
    assert 0 < rows < 200
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]
    starts = json.loads((folder / "out.csv.manifest.json").read_text())["starts"]
    assert [item["row"] for item in starts] == [0, rows]


def test_a15_a_complete_output_is_left_alone_and_no_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(folder, "--quiet") == 0
    before = {name: (folder / name).stat() for name in names(folder)}
    monkeypatch.setattr("mmrag_batch.run.predict.open_stages", refuse)
    monkeypatch.setattr("mmrag_batch.run.predict.open_bundle", refuse)
    started = time.monotonic()
    assert predict(folder) == 0
    assert time.monotonic() - started < 0.5
    assert {name: (folder / name).stat() for name in names(folder)} == before


def test_rows_are_committed_by_number_and_by_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations(folder)
    clean(folder)
    monkeypatch.setattr(draft, "COMMIT_SECONDS", 0.0)
    with failing_disk(Disk()) as disk:
        assert predict(folder, "--quiet") == 0
    assert disk.log.count("fsync out.csv.partial") == 200
