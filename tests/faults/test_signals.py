"""Group B: signals, time limits and locks. Each run is a process of its own, as under Slurm."""

import os
import random
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from mmrag_batch.errors import OutputError
from mmrag_batch.run.lock import hold_lock
from mmrag_batch.run.metrics_file import FIRST
from mmrag_batch.run.store import COMMIT_ROWS
from tests.faults.commands import Commands, Done, Running
from tests.faults.harness import (
    DONE,
    QUICK,
    ask,
    asked,
    begin,
    call,
    committed,
    end,
    manifest,
    names,
    predict,
    run,
    start,
    starts,
    statuses,
    wait_for,
    words,
    write_table,
)

STUCK = {"slow": {"100": 600}}
"""A run that has committed 64 rows, answered 36 more, and comes no further."""
SLOW = {"delay": 0.01}
"""Two seconds for 200 rows."""


def stop(running: Running, folder: Path, *numbers: int) -> Done:
    """Send signals once rows are committed; how the process ended."""
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    for number in numbers:
        running.send_signal(number)
    return running.wait()


def assert_goes_on(folder: Path, expected: bytes) -> None:
    """The same command completes the output, and redoes nothing that was committed."""
    rows = committed(folder)
    assert COMMIT_ROWS <= rows < 200
    code, numbers = ask(folder, "--quiet")
    assert (code, len(numbers)) == (0, 200 - rows)
    assert (folder / "out.csv").read_bytes() == expected
    assert [item["kept"] for item in manifest(folder)["starts"]] == [0, rows]
    assert names(folder) == DONE


def has_answered(folder: Path, rows: int) -> bool:
    return len(asked(folder)) >= rows


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_b02_a_first_signal_commits_and_exits_with_75(
    commands: Commands, folder: Path, expected: dict[int, bytes], name: str
) -> None:
    done = stop(begin(commands, folder, script=SLOW), folder, signal.Signals[name])
    assert done.code == 75, done.output
    assert f"Stopped by {name}: " in done.output
    assert "Run the same command again" in done.output
    assert not (folder / "out.csv.lock").exists()
    assert_goes_on(folder, expected[200])


def test_b02_a_command_that_was_started_as_any_other_is_stopped_as_well(
    folder: Path, expected: dict[int, bytes]
) -> None:
    """From the interpreter on, and with no library between it and its disk."""
    process = start(folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    process.send_signal(signal.SIGHUP)
    code, output = end(process)
    assert (code, "Stopped by SIGHUP" in output) == (75, True)
    assert_goes_on(folder, expected[200])


@pytest.mark.parametrize("seed", range(2))
def test_b01_signals_at_random_moments_leave_a_run_that_goes_on(
    commands: Commands, folder: Path, expected: dict[int, bytes], seed: int
) -> None:
    write_table(folder / "in.csv", 600)
    moments = random.Random(seed)
    for _ in range(4):
        before = committed(folder)
        running = begin(commands, folder, script={"delay": 0.003}, changes=QUICK)
        wait_for(partial(has_answered, folder, moments.randrange(1, 100)))
        running.send_signal(signal.SIGTERM)
        done = running.wait()
        assert done.code == 75, done.output
        assert committed(folder) == before + len(asked(folder))
        assert not (folder / "out.csv").exists()
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[600]


def test_b03_a_signal_to_the_whole_group_is_no_error_of_a_row(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    """The engine dies of the same signal, with rows in its hands."""
    script = {"delay": 0.01, "crash": {"90": 1}}
    running = begin(commands, folder, "--grace", 5, script=script)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    os.killpg(running.pid, signal.SIGTERM)
    done = running.wait()
    assert done.code == 75, done.output
    assert set(statuses(folder)) == {0}
    assert_goes_on(folder, expected[200])


def test_b04_the_first_interrupt_commits_and_exits_with_130(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    done = stop(begin(commands, folder, script=SLOW), folder, signal.SIGINT)
    assert done.code == 130, done.output
    assert "Stopped by SIGINT" in done.output
    assert "Traceback" not in done.output
    assert_goes_on(folder, expected[200])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_b04_a_second_signal_ends_the_run_at_once(
    commands: Commands, folder: Path, expected: dict[int, bytes], name: str
) -> None:
    """Although a row is in work for which the first one waits."""
    number = signal.Signals[name]
    running = begin(commands, folder, "--grace", 600, script=STUCK)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)

    def has_ended() -> bool:
        running.send_signal(number)  # two that are sent at once may come as one
        return not Path(f"/proc/{running.pid}").exists()

    wait_for(has_ended)
    done = running.wait()
    assert done.code == 128 + number
    assert f"A second signal, {name}: left at once." in done.output
    assert_goes_on(folder, expected[200])


def test_b04_a_signal_and_its_echo_are_one(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    """As Slurm preempts a job to which it gives no time."""
    running = begin(commands, folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    running.send_signal(signal.SIGCONT)
    for _ in range(3):
        running.send_signal(signal.SIGTERM)
        time.sleep(0.01)  # so that each one comes
    done = running.wait()
    assert done.code == 75, done.output
    assert_goes_on(folder, expected[200])


def test_b05_a_signal_while_models_load_is_obeyed(commands: Commands, folder: Path) -> None:
    running = begin(commands, folder, script={"load": 600})
    wait_for(lambda: starts(folder))
    running.send_signal(signal.SIGTERM)
    done = running.wait(within=30)
    assert (done.code, "SIGTERM before the first row" in done.output) == (75, True)
    assert predict(folder, "--quiet") == 0


def test_b07_a_burst_of_signals_neither_hangs_nor_crashes_a_run(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    done = stop(begin(commands, folder, script=SLOW), folder, *[signal.SIGTERM] * 100)
    assert done.code == 75, done.output
    assert "Traceback" not in done.output
    assert_goes_on(folder, expected[200])


def test_b07_a_row_that_takes_longer_than_the_grace_is_given_up(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    running = begin(commands, folder, "--grace", 1, script=STUCK)
    wait_for(lambda: len(asked(folder)) == 100)  # those since the 64th are not committed
    running.send_signal(signal.SIGTERM)
    done = running.wait(within=30)
    assert done.code == 75
    assert "1 s after SIGTERM, rows in work were given up" in done.output
    assert committed(folder) == 100
    assert_goes_on(folder, expected[200])


def test_b08_a_run_that_is_held_and_let_go_goes_on_with_its_lock(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    running = begin(commands, folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    running.send_signal(signal.SIGSTOP)
    assert predict(folder) == 11
    running.send_signal(signal.SIGCONT)
    assert running.wait().code == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_b09_a_second_run_is_told_who_is_at_it(commands: Commands, folder: Path) -> None:
    running = begin(commands, folder, script=STUCK)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    code, output = call(*words(folder))
    assert code == 11
    assert f"host {os.uname().nodename}, pid {running.pid}, started 20" in output
    metrics = folder / "mmrag.prom"
    metrics.write_text(FIRST + "that run's")
    skip = ("--if-locked", "skip", "--metrics-file", metrics, "--quiet")
    assert call(*words(folder, *skip)) == (0, "")
    assert metrics.read_text() == FIRST + "that run's"
    status = call("status", folder / "out.csv")[1]
    assert f"At work: host {os.uname().nodename}" in status
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_b09_a_run_that_waits_takes_the_output_over(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    first = begin(commands, folder, script=STUCK)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    second = begin(commands, folder, "--if-locked", "wait", changes={"tells": True})
    wait_for(lambda: "asks for out.csv.lock" in second.output)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = second.wait()
    assert (done.code, "64 of them answered before, 136 to ask" in done.output) == (0, True)
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_b10_two_outputs_of_one_input_are_written_at_once(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    running = begin(commands, folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    running.send_signal(signal.SIGSTOP)  # so that it is not done before the other
    assert predict(folder, "--quiet", output="other.csv") == 0
    running.send_signal(signal.SIGCONT)
    assert running.wait().code == 0
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
    commands: Commands, folder: Path
) -> None:
    """As by a second machine that does not see the locks of the first."""
    running = begin(commands, folder, script=SLOW)
    wait_for(lambda: committed(folder) >= COMMIT_ROWS)
    (folder / "out.csv.lock").write_text('{"host": "elsewhere", "pid": 7}')
    rows = committed(folder)
    done = running.wait()
    assert done.code == 11
    assert "host elsewhere, pid 7" in done.output
    assert committed(folder) <= rows + COMMIT_ROWS  # one may have been under way
    assert not (folder / "out.csv").exists()
    assert "elsewhere" in (folder / "out.csv.lock").read_text()


def test_b12_a_lock_file_whose_owner_is_gone_is_in_nobodys_way(folder: Path) -> None:
    (folder / "out.csv.lock").write_text('{"host": "gone", "pid": 1}')
    assert predict(folder, "--quiet") == 0
    assert names(folder) == DONE


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


def test_b14_the_time_limit_is_a_signal(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    """Whatever it had answered by then."""
    limits = ("--max-runtime", 2, "--grace", 0)
    done = run(commands, folder, *limits, script=STUCK, changes=QUICK)
    assert done.code == 75, done.output
    assert "--max-runtime" in done.output
    rows = committed(folder)
    assert rows <= 100
    code, numbers = ask(folder, "--quiet")
    assert (code, len(numbers)) == (0, 200 - rows)
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_b15_a_run_that_never_gets_to_a_commit_is_not_to_be_started_again(
    commands: Commands, folder: Path
) -> None:
    ends: list[Done] = []
    for _ in range(3):
        running = begin(commands, folder, script={"load": 600})
        wait_for(lambda: len(starts(folder)) > len(ends))
        running.send_signal(signal.SIGTERM)
        ends.append(running.wait())
    assert [done.code for done in ends] == [75, 75, 4]
    assert "give it more time" in ends[2].output
    assert stop(begin(commands, folder, script=SLOW), folder, signal.SIGTERM).code == 75
