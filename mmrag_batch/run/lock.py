"""One writer an output: a lock that the kernel frees when its holder dies, however it dies."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmrag_batch.errors import LockedError, OutputError
from mmrag_batch.run.files import check_ours

POLL = 0.1
"""Seconds between two looks at a lock that is waited for."""
LOOKED_AT = 1.0
"""Seconds for which a lock may be held by somebody who only looks whether it is."""

HEAD = b'{"host": '
"""How a lock file begins."""


class Lock:
    """A lock that this process holds. The file says who holds it, and at what."""

    def __init__(self, path: Path) -> None:
        self._path = path
        started = datetime.now(UTC).isoformat(timespec="microseconds")
        self._says: dict[str, object] = {**describe_process(), "started": started}
        self.describe()

    def describe(self, **work: object) -> None:
        """Say at what this process is."""
        self._says |= work
        self._text = json.dumps(self._says).encode() + b"\n"
        self._path.write_bytes(self._text)

    def check(self) -> None:
        """Raise LockedError if the lock is no longer ours, OSError if it is gone."""
        # Some network file systems keep locks to one machine: then the last to come writes.
        if self._path.read_bytes() != self._text:
            raise LockedError(f"Another run has taken this output over: {_show(self._path)}.")

    def free(self) -> None:
        """Remove the file, if it is still ours; who waits for it makes another."""
        with suppress(OSError, LockedError):
            self.check()
            self._path.unlink()


@contextmanager
def hold_lock(path: Path, *, wait: bool) -> Iterator[Lock]:
    """Hold the lock at `path`.

    Raises LockedError, naming the holder, unless `wait` is set and the lock comes free; OutputError
    where the lock file is not one or cannot be written, or the file system keeps no locks.
    """
    if check_ours(path) and not _may_be_ours(path):
        raise OutputError(f"{path} is no lock of a run. Move it away, or choose another output.")
    lock = _file_lock(path)
    try:
        lock.acquire(timeout=-1 if wait else LOOKED_AT)
    except Timeout:
        raise LockedError(f"Another run writes this output: {_show(path)}.") from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be locked ({error.strerror}). Remove it if it is a stranger's, or "
            "choose an output in another folder."
        ) from None
    held = None
    try:
        if not is_held(path):
            raise OutputError(
                f"The file system of {path.parent} keeps no locks, so two runs could write one "
                "output. Choose an output in another folder."
            )
        held = Lock(path)
        yield held
    finally:
        if held is not None:
            held.free()
        lock.release()


@contextmanager
def take_turns(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, for a moment, whoever else wants it."""
    check_ours(path)
    with _file_lock(path):
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`."""
    try:  # by hand: `filelock` would make a file that its holder has just removed
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second, in some file systems
        return True
    finally:
        os.close(descriptor)
    return False


def find_holder(path: Path) -> str | None:
    """Who holds the lock at `path`, in words; None if nobody does."""
    return _show(path) if is_held(path) else None


def read_holder(path: Path) -> Mapping[str, Any]:
    """What the holder of a lock says of itself: nothing if it has not, or the file is none."""
    try:
        says = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return says if isinstance(says, dict) and {"host", "pid"} <= says.keys() else {}


def describe_process() -> dict[str, object]:
    """Which process this is, for people who look for it."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job}


def _may_be_ours(path: Path) -> bool:
    """Whether a file is a lock, or what is left of one whose holder died while it wrote it."""
    try:
        text = path.read_bytes().strip(b"\0")
    except OSError:  # which whoever locks it will be told
        return True
    is_torn = HEAD.startswith(text[: len(HEAD)]) and not text.rstrip().endswith(b"}")
    return is_torn or bool(read_holder(path))


def _file_lock(path: Path) -> FileLock:
    return FileLock(path, poll_interval=POLL, fallback_to_soft=False)


def _show(path: Path) -> str:
    says = read_holder(path)
    known = (f"{name} {says[name]}" for name in ("host", "pid", "job", "started") if says.get(name))
    return ", ".join(known) or "it has not said who it is"
