"""How a run is asked to stop, by a signal or by its time limit, and what happens then.

    first TERM, USR1, USR2, HUP, INT    no new rows; those in work are finished and committed, and
                                        the log says how many they are
    after the grace period              what is finished is committed, and the process leaves
    a second TERM or INT                the process leaves at once; within a second it is an echo

Until rows are in work, and while a stage waits for a server that is away, there is nothing to
finish, and the first signal is enough to leave. A thread does all this, told by the interpreter
through a pipe (`signal.set_wakeup_fd`): a handler could run in the middle of anything, or not at
all while an engine is busy outside of Python.
"""

import faulthandler
import logging
import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from mmrag_batch.errors import ExitCode
from mmrag_batch.stages import STALLED

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
AT_ONCE = (signal.SIGTERM, signal.SIGINT)
NO_GAIN = (
    "No row was committed in the last starts, so another one would do no better: give it more time."
)
ECHO = 1.0
"""Seconds after the first signal in which another one is the same one, told twice: by Slurm 2 ms
apart, or by whatever hands signals on to a process that its group has told."""
LEAVE_WITHIN = 10.0
"""Seconds to save what can be saved, when a process leaves with rows in work."""
LOOK_EVERY = 0.2
"""Seconds between two looks, once stopped, whether rows can be finished at all."""
log = logging.getLogger(__name__)
CLOSE = 0
"""A byte in the pipe that is no signal: the run is over."""


class StopSignals:
    """Watches for a reason to stop; a context manager.

    `leave` is called, in another thread, when the process must go although rows are still in work;
    it saves what can be saved and says with what exit code. `cause` is what asked for the stop,
    None as long as nothing has.
    """

    def __init__(
        self, *, grace: float, max_runtime: float | None, leave: Callable[[], ExitCode]
    ) -> None:
        self.cause: str | None = None
        self.exit_code = ExitCode.TEMPFAIL
        self._stopped = math.inf
        self.working = False
        """Whether rows are in work, so that a first signal waits for them."""
        self.in_work: Callable[[], int] = int
        """How many they are; 0 where nobody can tell."""
        self._grace = grace
        self._deadline = None if max_runtime is None else time.monotonic() + max_runtime
        self._leave = leave

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
                    self._before[number] = signal.signal(number, _nothing)
            faulthandler.register(signal.SIGQUIT, sys.__stderr__ or sys.stderr)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            signal.set_wakeup_fd(-1)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            faulthandler.unregister(signal.SIGQUIT)
        os.write(self._write, bytes([CLOSE]))
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        while True:
            left = None if self._deadline is None else max(0, self._deadline - time.monotonic())
            if self.cause is not None and left is not None:
                left = min(left, LOOK_EVERY)
            if select.select([self._read], [], [], left)[0]:
                number = os.read(self._read, 1)[0]
                if number == CLOSE:
                    return
                if number in STOPPING:
                    self._on_signal(signal.Signals(number))
            elif self.cause is None:
                self._stop("--max-runtime")
            elif STALLED.is_set():
                self._go(f"{self.cause} while rows could not be finished")
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self._go(f"{self._grace:g} s after {self.cause}, rows in work were given up")

    def _on_signal(self, number: signal.Signals) -> None:
        if self.cause is None:
            if number == signal.SIGINT:
                self.exit_code = ExitCode.INTERRUPTED
            self._stop(number.name)
        elif number in AT_ONCE and time.monotonic() - self._stopped > ECHO:
            _tell(f"A second signal, {number.name}: left at once.")
            os._exit(128 + number)

    def _stop(self, cause: str) -> None:
        self._stopped = time.monotonic()
        self._deadline = self._stopped + self._grace
        self.cause = cause
        if not self.working:
            self._go(f"{cause} before the first row")
        elif not STALLED.is_set():  # in a thread, as the main one may hold the log
            threading.Thread(target=log.info, args=("%s", self._answer()), daemon=True).start()

    def _answer(self) -> str:
        """What a first signal is told while rows are in work."""
        rows = self.in_work()
        what = f"{rows:,} row{'s' if rows > 1 else ''}" if rows else "what is under way"
        more = "Ctrl-C again" if self.exit_code is ExitCode.INTERRUPTED else "another SIGTERM"
        return f"{self.cause}: finishing {what}, {self._grace:g} s at most; {more} stops at once."

    def _go(self, why: str) -> None:
        """Leave from this thread: the main thread may be stuck in an engine."""
        code = self.exit_code
        last = threading.Timer(LEAVE_WITHIN, os._exit, [code])  # a disk may never answer
        last.daemon = True
        last.start()
        with suppress(Exception):  # nothing may keep the process; what is committed is safe
            code = self._leave()
        for child in multiprocessing.active_children():
            child.terminate()
        advice = NO_GAIN if code is ExitCode.ABORTED else "Run the same command again to go on."
        _tell(f"Stopped: {why}. {advice}")
        os._exit(code)


def _tell(what: str) -> None:
    """Past the log, which the main thread may hold, and over what stands on a terminal's line."""
    with suppress(OSError):
        clear = "\r\x1b[K" if os.isatty(2) else ""
        os.write(2, f"{clear}mmrag-batch: {what}\n".encode())


def _nothing(*_: object) -> None:
    """A handler must be there for Python to note the signal; the rest is `_watch`'s."""
