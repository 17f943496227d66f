"""One writer an output: a lock that the kernel frees when its holder dies, however it dies."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mmrag_batch.errors import LockedError, OutputError

POLL = 0.5
"""Seconds between two looks at a lock that is waited for."""


@contextmanager
def hold_lock(path: Path, *, wait: bool) -> Iterator[Callable[[], None]]:
    """Hold the lock at `path`; gives a function that raises LockedError if it is no longer ours.

    Raises LockedError, naming the holder, unless `wait` is set and the lock comes free; OutputError
    where the lock file cannot be written or the file system keeps no locks.
    """
    lock = FileLock(path, poll_interval=POLL, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise LockedError(f"Another run writes this output: {_holder(path)}.") from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be locked ({error.strerror}). Remove it if it is a stranger's, or "
            "choose an output in another folder."
        ) from None
    ours = _describe_us()
    try:
        _check_that_locks_lock(path)
        path.write_text(ours, encoding="utf-8")

        def check() -> None:
            # Some network file systems keep locks to one machine: then the last to come writes.
            if path.read_text(encoding="utf-8") != ours:
                raise LockedError(f"Another run has taken this output over: {_holder(path)}.")

        yield check
    finally:
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == ours:
                path.unlink()  # who waits for this file finds it gone, and makes a new one
        lock.release()


def find_holder(path: Path) -> str | None:
    """Who holds the lock at `path`, in words; None if nobody does."""
    if not path.exists():
        return None
    try:
        FileLock(path, timeout=0, fallback_to_soft=False).acquire().lock.release()
    except Timeout:
        return _holder(path)
    return None


def _check_that_locks_lock(path: Path) -> None:
    """Raise OutputError where a lock that is held can be taken again."""
    try:
        FileLock(path, timeout=0, fallback_to_soft=False).acquire().lock.release()
    except Timeout:
        return
    raise OutputError(
        f"The file system of {path.parent} keeps no locks, so two runs could write one output. "
        "Choose an output in another folder."
    )


def describe_process() -> dict[str, object]:
    """Which process this is, for people who look for it."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job}


def _describe_us() -> str:
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    return json.dumps({**describe_process(), "started": started}) + "\n"


def _holder(path: Path) -> str:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    except (OSError, ValueError, AttributeError):
        return "it has not said who it is"
