"""The disk that fails and the server of commands do what tests of faults believe of them."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest

from mmrag_batch import __version__
from tests.faults.commands import ROOT, Commands, Done, Fault, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
HOOK = f"{__name__}:instead"
ROWS = [[], [(1,)] * 3, [(1,)] * 3 + [(2,)] * 2000]
"""What is in the table of `two_commits`, by how many there were."""


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


def instead(name: str) -> None:
    """The hook: one of the functions below is the command."""
    mock.patch("mmrag_batch.cli.app.main", globals()[name]).start()


def two_commits() -> None:
    """To a store that is as safe as the command's argument says; `end` comes after both."""
    with closing(sqlite3.connect("store", isolation_level=None)) as store:
        store.execute(f"PRAGMA synchronous = {sys.argv[1]}")
        store.execute("PRAGMA cache_size = 2")  # so that pages are written before the commit, too
        for statements in (
            ["CREATE TABLE rows (number)", "INSERT INTO rows VALUES (1), (1), (1)"],
            ["INSERT INTO rows VALUES (2)"] * 2000,
        ):
            store.execute("BEGIN IMMEDIATE")
            for statement in statements:
                store.execute(statement)
            store.execute("COMMIT")
    Path("end").touch()


def commits(folder: Path) -> int:
    """How many of the two commits are in the store, each in whole."""
    with closing(sqlite3.connect(folder / "store")) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = store.execute("SELECT name FROM sqlite_master").fetchall()
        rows = store.execute("SELECT number FROM rows").fetchall() if tables else []
    return ROWS.index(rows)


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def put(path: str, text: str, *, synced: bool, flags: int = os.O_TRUNC) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    os.write(descriptor, text.encode())
    if synced:
        os.fsync(descriptor)
    os.close(descriptor)


def many_changes() -> None:
    """Some that are on disk, then some of each kind that are not, then `end`."""
    for name in ("kept", "grown", "cut", "emptied", "replaced", "removed", "renamed", "unsynced"):
        put(name, f"old {name}", synced=name != "unsynced")
    Path("folder").mkdir()
    Path("empty").mkdir()
    sync(".")
    put("moved", "new", synced=True)
    Path("moved").rename("kept")
    sync(".")

    put("grown", " and more", synced=False, flags=os.O_APPEND)
    os.truncate("cut", 3)
    put("emptied", "", synced=False)
    put("new", "new", synced=True)
    Path("new").rename("replaced")
    Path("removed").unlink()
    Path("renamed").rename("folder/renamed")
    put("made", "made", synced=True)
    os.link("made", "linked")
    Path("empty").rmdir()
    Path("deep/deeper").mkdir(parents=True)
    put("deep/deeper/file", "x", synced=True)
    sync("deep/deeper")
    Path("end").touch()


def many_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(f"{number}", "ab", synced=True), range(80)))


def elsewhere() -> None:
    """What must not count, and one that does."""
    assert "LD_PRELOAD" not in os.environ
    Path("folder").mkdir(exist_ok=True)
    Path("absent").unlink(missing_ok=True)
    Path("../outside").write_text("x")
    subprocess.run([sys.executable, "-c", "open('child', 'w').write('x')"], check=True)
    if os.fork() == 0:
        Path("forked").write_text("x")
        os._exit(0)
    os.wait()
    Path("inside").write_text("x")


def sleep() -> None:
    print("asleep", flush=True)  # noqa: T201
    time.sleep(60)


def fail() -> None:
    raise ValueError("what went wrong")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it may go while it is looked at
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def run(
    commands: Commands,
    function: str,
    folder: Path,
    fault: Fault | None = None,
    *,
    safe: str = "EXTRA",
    log: bool = True,
) -> Done:
    """Run a function from above as if it were the command."""
    return commands.run(
        safe, folder=folder, fault=fault, hook=HOOK, hook_argument=function, log=log
    )


def folders(root: Path) -> Iterator[Path]:
    """Any number of new ones."""
    for number in range(10**6):
        (root / str(number)).mkdir(parents=True)
        yield root / str(number)


def test_a_command_gives_its_exit_code_and_what_it_wrote(
    commands: Commands, tmp_path: Path
) -> None:
    done = commands.run("--version", folder=tmp_path)
    assert (done.code, done.output) == (0, f"mmrag-batch {__version__}\n")
    wrong = commands.run("no-such-command", folder=tmp_path)
    assert wrong.code == 2
    assert "no-such-command" in wrong.output
    raised = commands.run(folder=tmp_path, hook=HOOK, hook_argument="fail")
    assert raised.code == 1
    assert raised.output.startswith("Traceback")
    assert raised.output.endswith("ValueError: what went wrong\n")


def test_the_environment_is_that_of_the_command_alone(commands: Commands, tmp_path: Path) -> None:
    arguments = ("predict", "in.csv", "out.csv")
    done = commands.run(*arguments, folder=tmp_path, environ={"MMRAG_TOP_K": "many"})
    assert "MMRAG_TOP_K" in done.output
    assert "MMRAG_TOP_K" not in commands.run(*arguments, folder=tmp_path).output


def test_operations_of_python_and_sqlite_are_logged_by_name(
    commands: Commands, tmp_path: Path
) -> None:
    done = run(commands, "two_commits", tmp_path)
    assert done.code == 0, done.output
    assert done.operations[:2] == ("create store", "create store-journal")
    assert done.operations[-3:] == ("unlink store-journal", "sync .", "create end")
    first = done.operations[: done.operations.index("unlink store-journal")]
    assert first[-2:] == ("write store", "sync store")
    assert {"write store-journal", "sync store-journal", "sync ."} < set(first)


def test_killed_at_its_first_operation_it_has_done_nothing(
    commands: Commands, tmp_path: Path
) -> None:
    done = run(commands, "two_commits", tmp_path, Fault(at=0))
    assert (done.code, done.operations) == (-signal.SIGKILL, ("create store",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["kill", "torn", "power"])
def test_whatever_kills_it_sqlite_keeps_whole_transactions(
    commands: Commands, tmp_path: Path, kind: Literal["kill", "torn", "power"]
) -> None:
    operations = run(commands, "two_commits", next(folders(tmp_path / "whole"))).operations
    kept = []
    for at, folder in zip(range(len(operations)), folders(tmp_path)):
        done = run(commands, "two_commits", folder, Fault(at, kind), log=False)
        assert (done.code, done.output) == (-signal.SIGKILL, "")
        kept.append(commits(folder))
    assert kept == sorted(kept)
    assert set(kept) == {0, 1, 2}


def test_a_power_cut_takes_a_commit_whose_journal_is_not_durably_gone(
    commands: Commands, tmp_path: Path
) -> None:
    """SQLite syncs the folder after it has removed the journal with EXTRA, and not with FULL."""
    for safe, expected, folder in zip(("FULL", "EXTRA"), (1, 2), folders(tmp_path)):
        whole = run(commands, "two_commits", next(folders(tmp_path / safe)), safe=safe)
        at = len(whole.operations) - 1
        done = run(commands, "two_commits", folder, Fault(at, "power"), safe=safe)
        assert done.operations == whole.operations
        assert commits(folder) == expected


def test_a_torn_write_is_half_of_it(commands: Commands, tmp_path: Path) -> None:
    done = run(commands, "many_changes", tmp_path, Fault(0, "torn", only="write"))
    assert done.code == -signal.SIGKILL
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"kept": "old "}


def test_a_power_cut_takes_what_was_not_synced_and_nothing_else(
    commands: Commands, tmp_path: Path
) -> None:
    operations = run(commands, "many_changes", next(folders(tmp_path / "whole"))).operations
    assert operations[-1] == "create end"
    folder = next(folders(tmp_path))
    done = run(commands, "many_changes", folder, Fault(len(operations) - 1, "power"))
    assert (done.code, done.output) == (-signal.SIGKILL, "")
    names = ("grown", "cut", "emptied", "replaced", "removed", "renamed")
    expected = {name: f"old {name}" for name in names} | {"kept": "new", "unsynced": ""}
    files = {file.name: file.read_text() for file in folder.rglob("*") if file.is_file()}
    assert files == expected
    assert {path.name for path in folder.rglob("*") if path.is_dir()} == {"folder", "empty"}


def test_a_full_disk_is_full_for_sqlite_and_stays_so(commands: Commands, tmp_path: Path) -> None:
    def full(folder: Path, at: int) -> Done:
        return run(commands, "two_commits", folder, Fault(at, errno.ENOSPC, only="write"))

    whole = full(next(folders(tmp_path / "whole")), -1)
    assert (whole.code, whole.output) == (0, "")
    assert {operation.split()[0] for operation in whole.operations} == {"write"}
    for at, folder in zip(range(len(whole.operations)), folders(tmp_path)):
        done = full(folder, at)
        assert done.code == 1
        assert done.output.endswith("sqlite3.OperationalError: database or disk is full\n")
        assert done.operations[: at + 1] == whole.operations[: at + 1]
        assert commits(folder) in (0, 1)


def test_python_gets_the_error_too(commands: Commands, tmp_path: Path) -> None:
    done = run(commands, "many_changes", tmp_path, Fault(0, errno.EIO, only="rename,sync"))
    assert "OSError: [Errno 5] Input/output error" in done.output
    assert done.operations == ("sync kept",)


def test_every_thread_is_counted_and_nothing_elsewhere_is(
    commands: Commands, tmp_path: Path
) -> None:
    folder = tmp_path / "watched"
    (folder / "folder").mkdir(parents=True)
    done = run(commands, "elsewhere", folder)
    assert (done.code, done.output) == (0, "")
    assert done.operations == ("create inside", "write inside")
    done = run(commands, "many_threads", folder)
    assert done.code == 0, done.output
    expected = [f"{step} {number}" for step in ("create", "sync", "write") for number in range(80)]
    assert sorted(done.operations) == sorted(expected)


def test_several_run_at_once_and_hear_signals(commands: Commands, tmp_path: Path) -> None:
    running = [commands.start(folder=tmp_path, hook=HOOK, hook_argument="sleep") for _ in range(3)]
    for number, one in zip((signal.SIGTERM, signal.SIGINT, signal.SIGKILL), running):
        wait_for(partial(getattr, one, "output"))
        one.send_signal(number)
    done = [one.wait(within=30) for one in running]
    assert [one.code for one in done] == [-signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL]
    assert "KeyboardInterrupt" in done[1].output
    assert commands.run("--version", folder=tmp_path).code == 0


def test_one_that_does_not_end_is_killed(commands: Commands, tmp_path: Path) -> None:
    running = commands.start(folder=tmp_path, hook=HOOK, hook_argument="sleep")
    wait_for(lambda: running.output)
    with pytest.raises(TimeoutError, match="asleep"):
        running.wait(within=0.01)
    wait_for(lambda: not is_alive(running.pid))


def test_nothing_is_left_of_a_server_that_is_left(tmp_path: Path) -> None:
    with Commands() as commands:
        running = commands.start(folder=tmp_path, hook=HOOK, hook_argument="sleep")
        assert is_alive(running.pid)
    assert not is_alive(running.pid)


def test_nothing_is_left_of_a_server_whose_parent_dies(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.faults.commands import Commands\n"
        "with Commands() as commands:\n"
        "    folder, hook = Path(sys.argv[1]), sys.argv[2]\n"
        "    one = commands.start(folder=folder, hook=hook, hook_argument='sleep')\n"
        "    print(one.pid, flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path), HOOK]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    wait_for(lambda: not is_alive(pid))


def test_a_misspelt_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="fsync"):
        Fault(0, only="write,fsync")
