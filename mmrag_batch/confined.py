"""A process for what strangers wrote and what may cost too much: it answers one request at a time,
within limits of time and memory that the request sets; one that breaks them ends it."""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

_START = (
    "import sys; sys.path[:] = sys.argv[2:]\n"
    "from importlib import import_module; import_module(sys.argv[1]).serve()"
)
Message = tuple[dict[str, Any], bytes]
"""What JSON can say, and bytes."""


class EndedError(Exception):
    """The process ended without an answer; `by_limit`: because of its limits."""

    def __init__(self, *, by_limit: bool) -> None:
        super().__init__()
        self.by_limit = by_limit


class Confined:
    """A process that runs the `serve` of a module, one request at a time. Thread-safe; a fork of
    this process starts one of its own."""

    def __init__(self, module: str) -> None:
        self._module = module
        self.process: subprocess.Popen[bytes] | None = None
        """None before `start`, and after it has ended."""
        self._parent = os.getpid()
        self._lock = threading.RLock()
        self._held: bytes | None = None
        """The body that the process was sent last, which it keeps: a file is asked for often."""

    def start(self) -> None:
        """Start the process, if there is none; it need not be waited for."""
        with self._owned():
            self._start()

    def _start(self) -> None:
        if self.process is None:
            # What `site` does takes as long as the rest; the paths that it found are handed on. In
            # a session of its own: a signal to the group of a run is no failure of a request.
            paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
            self.process = subprocess.Popen(  # noqa: S603  # ourselves
                [sys.executable, "-P", "-S", "-c", _START, self._module, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            atexit.register(self.close)

    def ask(
        self, head: Mapping[str, object], body: bytes = b"", *, seconds: int, memory: int
    ) -> Message:
        """The answer, which takes at most so many seconds of a processor and bytes of address
        space. Raises EndedError; the next request starts another process."""
        with self._owned():
            self._start()
            assert self.process is not None
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            is_held = body is self._held
            limits = {"seconds": seconds, "memory": memory, "is_held": is_held}
            try:
                _send(self.process.stdin, {**head, **limits}, b"" if is_held else body)
                answer = _receive(self.process.stdout)
            except (OSError, ValueError):
                by_limit = self._end() in (-signal.SIGXCPU, -signal.SIGKILL)
                raise EndedError(by_limit=by_limit) from None
            except BaseException:  # an interrupted exchange leaves half an answer in the pipe
                self._end()
                raise
            self._held = body
            return answer

    def close(self) -> None:
        """End the process, if there is one."""
        atexit.unregister(self.close)
        with self._owned():
            if self.process is not None:
                self._end()

    def _owned(self) -> AbstractContextManager[object]:
        """The lock. After a fork it, the process and its pipes are the parent's: forget them."""
        if self._parent != os.getpid():
            if self.process is not None:
                self.process.returncode = 0  # nobody here has to wait for it
            self._lock, self.process, self._held = threading.RLock(), None, None
            self._parent = os.getpid()
        return self._lock

    def _end(self) -> int:
        process, self.process, self._held = self.process, None, None
        assert process is not None
        process.kill()
        process.communicate()
        return process.returncode


def serve_requests(answer: Callable[[dict[str, Any], bytes], Message]) -> None:
    """In the process: answer what is asked until its input ends, as it does when a run ends in
    whatever way."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the limit on its time would leave one
    held = b""
    while True:
        try:
            head, body = _receive(sys.stdin.buffer)
        except (ValueError, OSError):
            return
        resource.setrlimit(resource.RLIMIT_AS, (head["memory"], resource.RLIM_INFINITY))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + head["seconds"] + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        held = held if head["is_held"] else body
        _send(sys.stdout.buffer, *answer(head, held))


def _send(stream: IO[bytes], head: Mapping[str, object], body: bytes) -> None:
    stream.write(json.dumps({**head, "bytes": len(body)}).encode() + b"\n")
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> Message:
    """Raises ValueError where the stream ends before."""
    head = json.loads(stream.readline())
    body = stream.read(head["bytes"])
    if len(body) != head["bytes"]:
        raise ValueError("the stream ended")
    return head, body
