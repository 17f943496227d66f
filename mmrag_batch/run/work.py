"""The questions of a table that have no answer yet: through the stages, into the store."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from mmrag_batch.errors import (
    AbortedError,
    InputError,
    LockedError,
    OutputError,
    StoppedError,
    StorageError,
)
from mmrag_batch.execute.executor import Executor
from mmrag_batch.records import Answer, Found, Question, Row, Status
from mmrag_batch.run.answers import STATUSES, Start, answer_of, to_kept, tokens_in_words
from mmrag_batch.run.database import DamagedError
from mmrag_batch.run.keys import digest_of
from mmrag_batch.run.signals import NO_GAIN, StopSignals
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import MISSING, KeyMaker, Survey
from mmrag_batch.stages import OpenStage, Stage
from mmrag_batch.table.rows import read_rows

IDLE_STARTS = 3
"""A run that was stopped so often before it committed a row is not worth another start."""
OURS = (AbortedError, InputError, LockedError, OutputError, StorageError, DamagedError)
"""What ends a run even while it is being stopped: no engine raises these."""
log = logging.getLogger(__name__)


class Work:
    """Rows without an answer, each question once, and what becomes of them.

    Rows in `busy` are left to who is at them. `start` counts what is done. What was answered from a
    corpus is also kept under the key that `key_of_found` gives.
    """

    def __init__(
        self,
        survey: Survey,
        store: AnswerStore,
        start: Start,
        key_of: KeyMaker,
        busy: Collection[range] = (),
        key_of_found: Callable[[Question, Found], bytes] | None = None,
    ) -> None:
        self._survey = survey
        self._store = store
        self._start = start
        self._key_of = key_of
        self._busy = busy
        self._key_of_found = key_of_found
        self._lock = threading.Lock()
        self._keys: dict[int, bytes] = {}
        """Of the rows in work, by number."""
        self._waiting: dict[bytes, int] = {}
        """How many rows wait for the answer under a key."""
        self._seen = bytearray(2**21)
        """A bit for the beginning of each key that was asked: most are not, which saves a look."""
        self.left = 0
        """Rows that were left to others."""
        self.failed = survey.unreadable
        """Rows that this start has no answer for."""
        self.complaint = ""
        """What was wrong with the last of them."""

    def rows(self) -> Iterator[Row]:
        """The first row of each question. Raises InputError if the table is not what it was."""
        keys = dict[int, bytes]()

        def numbers() -> Iterator[int]:
            for number, key, status in self._survey:
                if status == MISSING:
                    if any(number in rows for rows in self._busy):
                        self.left += 1
                    elif not self._is_known(key):
                        keys[number] = key
                        yield number

        for row in read_rows(self._survey.table, numbers(), names=self._survey.names):
            key = keys.pop(row.number)
            if row.question is None or self._key_of(row.question) != key:
                raise InputError(
                    f"{self._survey.table}, line {row.line} was changed while the table was read. "
                    "Run the same command again: it asks the rows that are new."
                )
            with self._lock:
                self._keys[row.number] = key
            yield row

    def _is_known(self, key: bytes) -> bool:
        """Whether a question is in work, or has got its answer in this start; counts the row."""
        place, bit = divmod(int.from_bytes(key[:3]), 8)
        with self._lock:
            if key in self._waiting:
                self._waiting[key] += 1
                return True
            if self._seen[place] & 1 << bit:
                kept = self._store.find(key)
                if kept is not None and kept.start == self._start.id:
                    self._count(STATUSES[kept.status], 1)
                    return True
            self._seen[place] |= 1 << bit
            self._waiting[key] = 1
            return False

    def keep(self, row: Row) -> None:
        """Keep what became of a row, and of all that ask the same."""
        answer = answer_of(row)
        kept = to_kept(answer, start=self._start.id, images=digest_of(row.images))
        if row.question and row.found and self._key_of_found and answer.status != "error":
            # to be found again by the evidence
            self._store.keep(self._key_of_found(row.question, row.found), kept)
        with self._lock:
            key = self._keys.pop(row.number)
            self._start.asked += 1
            for kind, tokens in zip(row.usage._fields, row.usage):
                if tokens:
                    self._start.usage[kind] = self._start.usage.get(kind, 0) + tokens
            self._count(answer.status, 1)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s", _told(row, answer))
            if row.error is not None:
                self.complaint = f"line {row.line}: {row.error.message}"
        self._store.keep(key, kept)
        with self._lock:
            self._count(answer.status, self._waiting.pop(key) - 1)

    def _count(self, status: Status, rows: int) -> None:
        self._start.rows[status] += rows
        self.failed += rows if status == "error" else 0


def _told(row: Row, answer: Answer) -> str:
    """A line on one row."""
    evidence = ", ".join(f"{name} {score:g}" for name, score in answer.evidence)
    said = [f"line {row.line}: {answer.status}", f"evidence: {evidence or 'none'}"]
    said += [f"{problem.code}: {problem.message}" for problem in answer.problems]
    said += [f"{tokens:,} {kind} tokens" for kind, tokens in row.usage._asdict().items() if tokens]
    return "; ".join(said)


class _InWork:
    """Counts the rows that a stage has in its hands, wherever it counts for this process."""

    def __init__(self) -> None:
        self._given = self._back = 0  # each is counted in one thread

    @property
    def rows(self) -> int:
        return self._given - self._back

    @contextmanager
    def counted(self, open_stage: OpenStage) -> Iterator[Stage]:
        """Opens a stage whose rows are counted."""
        with open_stage() as stage:
            yield _Counted(stage, self)

    def give(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self._given += 1
            yield row

    def take(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self._back += 1
            yield row


class _Counted:
    """A stage as it is, but for the count."""

    def __init__(self, stage: Stage, in_work: _InWork) -> None:
        self.window = stage.window
        self._stage, self._in_work = stage, in_work

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        return self._in_work.take(self._stage(self._in_work.give(rows)))


def ask_missing(
    work: Work,
    store: AnswerStore,
    start: Start,
    stages: Sequence[OpenStage],
    stop: StopSignals,
    executor: Executor,
    *,
    allowed: float | None,
    begin: Callable[[], None],
    report: Callable[[Mapping[Status, int]], None],
) -> None:
    """Ask every row that is missing, and commit all answers.

    `begin` is called when the models are loaded, `report` told of each answer. Raises AbortedError
    when more than `allowed` rows fail, StoppedError if it was stopped before the last row; both
    after a commit.
    """
    opened = time.monotonic()

    def rows() -> Iterator[Row]:
        """What is missing; the models are loaded when the first of it is asked for."""
        nonlocal opened
        begin()
        stop.working, opened = True, time.monotonic()
        yield from work.rows()

    def keep(row: Row) -> None:
        start.seconds = time.monotonic() - opened
        work.keep(row)
        report(start.rows)
        if allowed is not None and work.failed > allowed:
            store.end()
            raise AbortedError(too_many(work.failed, work.complaint))

    in_work = _InWork()
    stop.in_work = lambda: in_work.rows
    *others, last = stages
    stages = [*others, partial(in_work.counted, last)]
    try:
        executor(rows(), stages, keep, is_stopped=lambda: stop.cause is not None)
    except OURS:
        raise
    except Exception as error:
        # An engine may be stopped by the same signal, before its last rows are answered.
        if stop.cause is None:
            raise
        log.info("Rows in work were given up: %s", error)
    done = start.asked
    store.end()
    missing = start.stop - start.first - sum(start.rows.values()) - work.left
    if stop.cause is None or missing == 0:
        return
    if not is_gaining(store, start):
        raise AbortedError(f"Stopped by {stop.cause}. {NO_GAIN}")
    cost = f" ({tokens_in_words(start.usage)})" if start.usage else ""
    raise StoppedError(
        f"Stopped by {stop.cause}: {done:,} questions were asked{cost}, {missing:,} rows are "
        "left. Run the same command again to go on.",
        stop.exit_code,
    )


def too_many(failed: int, complaint: str) -> str:
    """What a run says that ends because too many rows fail."""
    return (
        f"{failed:,} rows failed, more than --max-row-errors allows; {complaint}. Mend the cause, "
        "then run the same command again, with `--retry-errors` to ask the failed rows as well."
    )


def is_gaining(store: AnswerStore, start: Start) -> bool:
    """Whether a run that is stopped now is worth another start."""
    idle = 0
    for before in reversed(store.starts()):
        if before.id == start.id:
            continue
        if before.asked:
            break
        idle += 1
    return start.asked > 0 or idle + 1 < IDLE_STARTS
