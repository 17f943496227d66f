"""Group B: signals, time limits and locks. Each run is a process of its own, as under Slurm."""

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from mmrag_batch.errors import OutputError
from mmrag_batch.io.draft import COMMIT_ROWS
from mmrag_batch.io.lock import hold_lock
from tests.faults.harness import call, committed, end, names, predict, start, wait_for, write_table

SLOW = {"delay": 0.01}
"""Two seconds for 200 rows."""


def stop(process: "subprocess.Popen[str]", folder: Path, *numbers: int) -> tuple[int, str]:
    """Send signals once rows are committed; how the process ended."""
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    for number in numbers:
        process.send_signal(number)
    return end(process)


def holds_lock(process: "subprocess.Popen[str]", folder: Path) -> bool:
    lock = folder / "out.csv.lock"
    return lock.exists() and f'"pid": {process.pid},' in lock.read_text()


def assert_goes_on(folder: Path, expected: bytes) -> None:
    """The same command completes the output, and redoes nothing that was committed."""
    rows = committed(folder)
    assert COMMIT_ROWS <= rows < 200
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected
    starts = json.loads((folder / "out.csv.manifest.json").read_text())["starts"]
    assert [item["row"] for item in starts] == [0, rows]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_b02_a_first_signal_commits_and_exits_with_75(
    folder: Path, expected: dict[int, bytes], name: str
) -> None:
    code, output = stop(start(folder, script=SLOW), folder, signal.Signals[name])
    assert code == 75, output
    assert f"Stopped by {name}: " in output
    assert "Run the same command again" in output
    assert not (folder / "out.csv.lock").exists()
    assert_goes_on(folder, expected[200])


@pytest.mark.parametrize("seed", range(2))
def test_b01_signals_at_random_moments_leave_a_run_that_goes_on(
    tmp_path: Path, expected: dict[int, bytes], seed: int
) -> None:
    write_table(tmp_path / "in.csv", 2000)
    moments = random.Random(seed)
    for _ in range(5):
        before = committed(tmp_path)
        process = start(tmp_path, script={"delay": 0.01})
        wait_for(partial(holds_lock, process, tmp_path))
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGTERM)
        code, output = end(process)
        assert code == (4 if "give it more time" in output else 75), output
        assert committed(tmp_path) >= before
        assert not (tmp_path / "out.csv").exists()
    assert committed(tmp_path) > 0
    assert predict(tmp_path, "--quiet") == 0
    assert (tmp_path / "out.csv").read_bytes() == expected[2000]


def test_b03_a_signal_to_the_whole_group_is_no_error_of_a_row(
    folder: Path, expected: dict[int, bytes]
) -> None:
    """The engine dies of the same signal, with rows in its hands."""
    process = start(folder, "--grace", 5, script={"delay": 0.01, "crash": {"90": 1}})
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    os.killpg(process.pid, signal.SIGTERM)
    code, output = end(process)
    assert code == 75, output
    assert '"failures": [{' not in (folder / "out.csv.state" / "journal").read_text()
    assert_goes_on(folder, expected[200])


def test_b04_the_first_interrupt_commits_and_exits_with_130(
    folder: Path, expected: dict[int, bytes]
) -> None:
    code, output = stop(start(folder, script=SLOW), folder, signal.SIGINT)
    assert code == 130, output
    assert "Stopped by SIGINT" in output
    assert "Traceback" not in output
    assert_goes_on(folder, expected[200])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_b04_a_second_signal_ends_the_run_at_once(
    folder: Path, expected: dict[int, bytes], name: str
) -> None:
    number = signal.Signals[name]
    process = start(folder, script={"delay": 0.01, "slow": {"100": 60}})
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None  # row 100 is in work
    process.send_signal(number)
    assert end(process, within=2)[0] == 128 + number
    assert_goes_on(folder, expected[200])


def test_b05_a_signal_while_models_load_is_obeyed_within_seconds(folder: Path) -> None:
    process = start(folder, script={"load": 60})
    wait_for(lambda: (folder / "out.csv.partial").exists())
    process.send_signal(signal.SIGTERM)
    code, output = end(process, within=5)
    assert (code, "SIGTERM before the first row" in output) == (75, True)


def test_b07_a_burst_of_signals_neither_hangs_nor_crashes_a_run(
    folder: Path, expected: dict[int, bytes]
) -> None:
    process = start(folder, script=SLOW)
    code, output = stop(process, folder, *[signal.SIGTERM] * 100)
    assert code in (75, 143), output
    assert "Traceback" not in output
    assert_goes_on(folder, expected[200])


def test_b07_a_row_that_takes_longer_than_the_grace_is_given_up(
    folder: Path, expected: dict[int, bytes]
) -> None:
    process = start(folder, "--grace", 1, script={"delay": 0.005, "slow": {"100": 60}})
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    time.sleep(0.5)  # row 100 is in work, those before it are not committed
    process.send_signal(signal.SIGTERM)
    code, output = end(process, within=5)
    assert (code, "1 s after SIGTERM, rows in work were given up" in output) == (75, True)
    assert committed(folder) == 100
    assert_goes_on(folder, expected[200])


def test_b08_a_run_that_is_held_and_let_go_goes_on_with_its_lock(
    folder: Path, expected: dict[int, bytes]
) -> None:
    process = start(folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    assert predict(folder) == 11
    process.send_signal(signal.SIGCONT)
    assert end(process)[0] == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_b09_a_second_run_is_told_who_writes_the_output(folder: Path) -> None:
    process = start(folder, script={"load": 60})
    wait_for((folder / "out.csv.partial").exists)
    words = ("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")
    code, output = call(*words)
    assert code == 11
    assert f"host {os.uname().nodename}, pid {process.pid}, started 20" in output
    metrics = folder / "mmrag.prom"
    metrics.write_text("that run's")
    skip = ("--if-locked", "skip", "--metrics-file", metrics, "--quiet")
    assert call(*words, *skip) == (0, "")
    assert metrics.read_text() == "that run's"
    assert f"At work: host {os.uname().nodename}" in call("status", folder / "out.csv")[1]
    process.kill()
    end(process)


def test_b09_a_run_that_waits_takes_the_output_over(folder: Path) -> None:
    first = start(folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    second = start(folder, "--if-locked", "wait")
    time.sleep(1)
    assert second.poll() is None
    first.kill()
    end(first)
    code, output = end(second)
    assert (code, "Going on at row" in output) == (0, True)


def test_b10_two_outputs_of_one_input_are_written_at_once(
    folder: Path, expected: dict[int, bytes]
) -> None:
    process = start(folder, script=SLOW)
    wait_for((folder / "out.csv.partial").exists)
    assert predict(folder, "--quiet", output="other.csv") == 0
    assert process.poll() is None
    assert end(process)[0] == 0
    assert (folder / "out.csv").read_bytes() == (folder / "other.csv").read_bytes()


def test_b11_a_file_system_that_keeps_no_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with (
        pytest.raises(OutputError, match="keeps no locks"),
        hold_lock(tmp_path / "lock", wait=False),
    ):
        pass


def test_b11_a_run_whose_lock_was_taken_over_writes_nothing_more(
    folder: Path,
) -> None:
    """As by a second machine that does not see the locks of the first."""
    process = start(folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    (folder / "out.csv.lock").write_text('{"host": "elsewhere", "pid": 7}')
    rows = committed(folder)
    code, output = end(process)
    assert code == 11
    assert "host elsewhere, pid 7" in output
    assert committed(folder) <= rows + COMMIT_ROWS


def test_b12_a_lock_file_whose_owner_is_gone_is_in_nobodys_way(folder: Path) -> None:
    (folder / "out.csv.lock").write_text('{"host": "gone", "pid": 1}')
    assert predict(folder, "--quiet") == 0
    assert "out.csv.lock" not in names(folder)


def test_b13_a_lock_file_that_cannot_be_opened_is_told(folder: Path) -> None:
    (folder / "out.csv.lock").mkdir()
    code, output = call("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")
    assert (code, "out.csv.lock cannot be locked (Is a directory)" in output) == (73, True)


def test_b13_a_lock_file_of_another_user_is_told() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "lock").touch(0o644)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody
    else:
        (folder / "lock").chmod(0o444)
    try:
        with (
            pytest.raises(OutputError, match=r"lock cannot be locked \(Permission denied\)"),
            hold_lock(folder / "lock", wait=False),
        ):
            pass
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_b14_the_time_limit_is_a_signal(folder: Path, expected: dict[int, bytes]) -> None:
    code, output = end(start(folder, "--max-runtime", 4, script={"delay": 0.04}))
    assert code == 75, output
    assert "Stopped by --max-runtime: " in output
    assert_goes_on(folder, expected[200])


def test_b15_a_run_that_never_gets_to_a_commit_is_not_to_be_started_again(folder: Path) -> None:
    ends: list[tuple[int, str]] = []
    for _ in range(3):
        process = start(folder, script={"load": 60})
        wait_for(lambda: (folder / "out.csv.partial").exists() and starts(folder) > len(ends))
        process.send_signal(signal.SIGTERM)
        ends.append(end(process, within=5))
    assert [code for code, _ in ends] == [75, 75, 4]
    assert "give it more time" in ends[2][1]
    assert stop(start(folder, script=SLOW), folder, signal.SIGTERM)[0] == 75


def starts(folder: Path) -> int:
    return (folder / "out.csv.state" / "journal").read_text().count(" start {")
