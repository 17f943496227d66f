"""A command on a terminal, as a person has it: what is typed, and what stands on the screen."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

CTRL_C = b"\x03"
COLUMNS = 80
STEP = re.compile(r"\x1b\[([0-9]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
"""What a terminal is sent: a command to it, the end of a line, a text."""


class Terminal:
    """Runs `mmrag-batch` with these arguments; a context manager."""

    def __init__(self, *arguments: object, folder: Path, environ: Mapping[str, str] = {}) -> None:
        self._words = [sys.executable, "-m", "mmrag_batch", *map(str, arguments)]
        self._folder, self._environ = folder, os.environ | environ
        self.sent = ""
        """All that it has written."""

    def __enter__(self) -> Self:
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            os.chdir(self._folder)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background ignores
            os.execve(self._words[0], self._words, self._environ)
        size = struct.pack("HHHH", 24, COLUMNS, 0, 0)
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._screen)  # which hangs up on what is still running

    def type(self, keys: bytes) -> None:
        os.write(self._screen, keys)

    def type_until_it_ends(self, keys: bytes) -> None:
        """Type the same now and then."""
        while os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self.type(keys)
            time.sleep(0.1)

    def read_until(self, pattern: str, *, within: float = 120.0) -> None:
        """Wait until this has been written."""
        deadline = time.monotonic() + within
        while not re.search(pattern, self.sent):
            assert self._read(deadline), f"{pattern!r} never came:\n{self.sent}"

    def read_while(self, condition: Callable[[], bool], *, within: float = 120.0) -> None:
        """Read what is written while something is so."""
        deadline = time.monotonic() + within
        while condition():
            assert time.monotonic() < deadline, self.sent
            if select.select([self._screen], [], [], 0.01)[0]:
                self._read(deadline)

    def wait(self, *, within: float = 120.0) -> int:
        """The exit code, once it has ended."""
        deadline = time.monotonic() + within
        while self._read(deadline):
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._screen], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"it does not end:\n{self.sent}"
        try:
            data = os.read(self._screen, 2**16)
        except OSError:  # as Linux has it when nobody is at the other end
            return False
        self.sent += data.decode(errors="replace")
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """The lines that stand on the screen, and above it; without Ctrl-C, which it shows."""
        lines, at, row = [""], 0, 0
        for number, command, end, text in STEP.findall(self.sent.replace("^C", "")):
            if end == "\r":
                at = 0
            elif end == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif command == "A":
                row = max(0, row - int(number or 1))
            elif command == "K":
                lines[row] = lines[row][:at]
            elif text:
                before = lines[row].ljust(at)
                lines[row] = before[:at] + text + before[at + len(text) :]
                at += len(text)
        return [line.rstrip() for line in lines if line.rstrip()]
