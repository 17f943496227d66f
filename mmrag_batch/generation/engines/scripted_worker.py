"""The scripted engine in a bad mood: slow, out of memory, dead or stuck when a script says so.

The script stands in the variable SCRIPTED_ENGINE, in JSON. Only tests set it:

    {"load": 2, "delay": 0.01, "slow": {"7": 1.0}, "oom": [4], "crash": {"3": 1}, "hang": [5],
     "kill": {"6": 1}, "log": "asked.txt"}

`load` are seconds to start, `delay` seconds a row, `slow` seconds for some rows. Rows under `oom`
do not fit into memory, those under `crash` kill the engine so many times, those under `hang` are
never answered. The number of each row that is answered is appended to the file `log`. Rows under
`kill` kill the process that the engine is in so many times, which `log` and `.kills` counts.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

from mmrag_batch.errors import ConfigError
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.inflight import ResultFuture
from mmrag_batch.generation.supervisor import EngineDied
from mmrag_batch.records import Problem

VARIABLE = "SCRIPTED_ENGINE"


@dataclass(slots=True)
class Script:
    """What goes wrong; see above. Rows are numbered from 0."""

    load: float = 0.0
    delay: float = 0.0
    slow: dict[int, float] = field(default_factory=dict)
    oom: list[int] = field(default_factory=list)
    crash: dict[int, int] = field(default_factory=dict)
    hang: list[int] = field(default_factory=list)
    kill: dict[int, int] = field(default_factory=dict)
    log: str | None = None


def read_script(text: str) -> Script:
    """The script in a text. Raises ConfigError if it is none."""
    try:
        script = Script(**json.loads(text))
        script.slow = {int(row): float(seconds) for row, seconds in script.slow.items()}
        script.kill = {int(row): int(times) for row, times in script.kill.items()}
        script.crash = {int(row): int(times) for row, times in script.crash.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{VARIABLE} is no script: {error}.") from None
    return script


class ScriptedWorker:
    """Answers in a thread, one row after the other, until its script has it die."""

    def __init__(self, script: Script, answer: Callable[[Request], Result]) -> None:
        self._script = script
        self._answer_to = answer
        self._queue: SimpleQueue[tuple[Request, ResultFuture] | None] = SimpleQueue()
        self._closed = Event()
        time.sleep(script.load)
        self._thread = Thread(target=self._work, name="scripted engine", daemon=True)
        self._thread.start()

    def ask(self, request: Request, /) -> ResultFuture:
        """The future of the answer; it raises EngineDied if the worker dies before."""
        future: ResultFuture = Future()
        self._queue.put((request, future))
        return future

    def close(self) -> None:
        """End the worker, whatever it is at."""
        self._closed.set()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None and not self._closed.is_set():
            request, future = item
            row, _ = request.key
            self._closed.wait(self._script.slow.get(row, self._script.delay))
            if row in self._script.kill:
                self._kill(row)
            if row in self._script.hang:
                self._closed.wait()
            elif self._script.crash.get(row, 0) > 0:
                self._script.crash[row] -= 1
                self._die(future)
                return
            elif future.set_running_or_notify_cancel():
                future.set_result(self._answer(request))

    def _answer(self, request: Request) -> Result:
        if self._script.log is not None:
            with Path(self._script.log).open("a", encoding="utf-8") as stream:
                stream.write(f"{request.key[0]}\n")
        if request.key[0] in self._script.oom:
            problem = Problem("engine_oom", "The row does not fit into memory, even alone.")
            return Result(request.key, error=problem)
        return self._answer_to(request)

    def _kill(self, row: int) -> None:
        """End this process, as the kernel does where memory is short, unless that was often
        enough."""
        with Path(f"{self._script.log}.kills").open("a+", encoding="utf-8") as stream:
            stream.seek(0)
            if stream.read().split().count(str(row)) < self._script.kill[row]:
                stream.write(f"{row}\n")
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    def _die(self, future: ResultFuture) -> None:
        """Take everything along that was asked, until the worker is closed."""
        future.set_exception(EngineDied())
        while (item := self._queue.get()) is not None:
            if item[1].set_running_or_notify_cancel():
                item[1].set_exception(EngineDied())
