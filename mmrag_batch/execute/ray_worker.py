"""A worker of a run on a Ray cluster: all stages, in a process of its own.

Messages say what it is to do, one at a time, and a thread works meanwhile: each brings it rows and
takes away those that it has answered. So it always has rows, and what is answered is kept soon.
"""

import logging
import os
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from mmrag_batch import __version__
from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.execute.local import rows_in_flight, run_stages
from mmrag_batch.masking import mask
from mmrag_batch.records import Question, Row
from mmrag_batch.stages import STALLED, open_stages

TOGETHER = 16
"""Answered rows that are worth a message at once."""
LINGER = 0.1
"""Seconds in which fewer wait for others."""
NO_ROW_WITHIN = 1.0
"""Seconds without a row after which stages finish what they have."""
ANSWER_WITHIN = 0.5
"""Seconds after which there is a report even of nothing."""


class Terms(NamedTuple):
    """What a run has on the machine where it was started: the versions of Python and of this
    package, its folder, variables, and the level of its log."""

    versions: tuple[str, str]
    folder: str
    environ: Mapping[str, str]
    level: int


class Message(NamedTuple):
    """What a worker is told: rows to answer (pickled), whether none follow for now, and whether it
    is to end when it has answered what it has or, with `stop`, what its last stage has."""

    rows: bytes
    is_last: bool = False
    end: bool = False
    stop: bool = False


class Report(NamedTuple):
    """What a worker tells: answered rows (pickled; empty without any), without cells, nor the
    question where it is as it was; what was logged (logger, level, text); the most rows that it is
    to have at once, 0 until its stages are open; whether it waits for something elsewhere; and
    whether it has ended."""

    rows: bytes
    logged: list[tuple[str, int, str]]
    window: int
    is_stalled: bool
    has_ended: bool


def find_versions() -> tuple[str, str]:
    """Those of Python, but for the last part, and of this package."""
    return f"{sys.version_info.major}.{sys.version_info.minor}", __version__


class Worker:
    """The actor; one message is in its hands at any time."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Row | None] = SimpleQueue()
        """Rows, and None where no more follow for now."""
        self._is_fed = False
        """Whether rows were given since the last None."""
        self._questions: dict[int, Question | None] = {}
        """Of the rows that are in work, by number."""
        self._answered: list[Row] = []
        self._log = _Notes()
        self._window = self._told_window = 0
        self._stopped = self._ending = self._has_ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def open(self, terms: Terms, stages: bytes) -> Report:
        """Begin to open stages (pickled); there is nothing to tell of it yet. Raises
        UnavailableError where versions differ, MissingError where the folder of the run is not
        there."""
        if (mine := find_versions()) != terms.versions:
            here, there = (" and mmrag-batch ".join(one) for one in (mine, terms.versions))
            raise UnavailableError(
                f"Python {here}, but the run was started by Python {there}. Install the same on "
                "all nodes."
            )
        os.environ.update(terms.environ)
        try:
            os.chdir(terms.folder)
        except OSError as error:
            raise MissingError(
                f"{terms.folder}, where the run was started, is not there ({error.strerror}). "
                "Start it in a folder that all nodes see."
            ) from None
        logging.basicConfig(handlers=[self._log], level=logging.WARNING, force=True)
        logging.getLogger("mmrag_batch").setLevel(terms.level)
        logging.captureWarnings(True)
        threading.Thread(target=self._work, args=(stages,), name="stages", daemon=True).start()
        return Report(b"", [], 0, False, False)

    def exchange(self, message: Message) -> Report:
        """Take rows, and give back what is answered. Raises what a stage raised."""
        rows: list[Row] = pickle.loads(message.rows) if message.rows else []  # noqa: S301  # ours
        with self._changed:
            self._questions |= {row.number: row.question for row in rows}
            self._stopped |= message.stop
            self._ending |= message.end
        for row in rows:
            self._given.put(row)
        self._is_fed |= bool(rows)
        if message.end or (message.is_last and self._is_fed):
            self._given.put(None)
            self._is_fed = False
        with self._changed:
            if self._changed.wait_for(self._has_news, ANSWER_WITHIN):
                self._changed.wait_for(self._has_much, LINGER)
            answered, self._answered = self._answered, []
            logged = self._log.take()
            if self._error is not None and not (answered or logged):
                raise self._error
            self._told_window = self._window
            has_ended = self._has_ended and self._error is None
        packed = pickle.dumps(answered) if answered else b""
        return Report(packed, logged, self._window, STALLED.is_set(), has_ended)

    def _has_news(self) -> bool:
        return bool(self._answered or self._has_ended or self._window != self._told_window)

    def _has_much(self) -> bool:
        return len(self._answered) >= TOGETHER or not self._questions or self._has_ended

    def _work(self, stages: bytes) -> None:
        try:
            with open_stages(pickle.loads(stages)) as opened:  # noqa: S301  # of who started us
                with self._changed:
                    # What was answered and is not taken yet is to be missed by no stage.
                    self._window = rows_in_flight(opened) + 2 * TOGETHER
                    self._changed.notify_all()
                while not self._ending:
                    run_stages(self._rows(), opened, self._keep, is_stopped=lambda: self._stopped)
        except BaseException as error:  # handed to who asks next
            self._error = error
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _rows(self) -> Iterator[Row]:
        """Until no more follow, or none has come for a while: a stage that fails waits for what
        reads ahead of it."""
        with suppress(Empty):
            while (row := self._given.get(timeout=NO_ROW_WITHIN)) is not None:
                yield row

    def _keep(self, row: Row) -> None:
        row.cells = {}
        with self._changed:
            if row.question is self._questions.pop(row.number):
                row.question = None
            self._answered.append(row)
            self._changed.notify_all()


class _Notes(logging.Handler):
    """What is logged, secrets of this machine masked, until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())
        self._notes: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.append((record.name, record.levelno, mask(self.format(record))))

    def take(self) -> list[tuple[str, int, str]]:
        notes, self._notes = self._notes, []
        return notes
