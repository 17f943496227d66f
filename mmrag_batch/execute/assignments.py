"""Which rows are in whose hands, where workers elsewhere have them and may die.

What a worker had when it died is asked again: of any worker, together with other rows, then alone,
since one of them may have been the cause. A row that was there at `MAX_DEATHS` deaths, the last
time alone, is at fault, and gets an error. All others get their answers.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from mmrag_batch.errors import InternalError
from mmrag_batch.records import Problem, Row

MAX_DEATHS = 3
"""Deaths of workers that a row may be in the hands of."""
FEWEST = 32
"""Rows that a worker may have however few there are, as stages take so many together."""
WORKER_DIED = Problem(
    "worker_died",
    f"Each of the {MAX_DEATHS} workers that had this row died, the last one with this row alone.",
)


class Share(NamedTuple):
    """Rows for a worker, and whether no more of them follow before it has answered some."""

    rows: list[Row]
    is_last: bool


class Assignments:
    """Hands out rows, each to one worker at a time. Workers are known by any number.

    No row is read before the first worker wants some, and then as many ahead as all of them can
    have, so that the last rows are shared by all. Rows with an error wait for an answer: where no
    row gets one, it is not the rows that kill workers.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._source = iter(rows)
        self._exhausted = False
        self._waiting: deque[Row] = deque()
        """Rows that nobody has, those of workers that died first."""
        self._suspects: deque[Row] = deque()
        """Rows to ask alone."""
        self._at_fault: list[Row] = []
        self._deaths: Counter[int] = Counter()
        """Of each row that is not answered, by number."""
        self._held: dict[int, dict[int, Row]] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether there may be rows that nobody has."""
        return bool(not self._exhausted or self._waiting or self._suspects)

    @property
    def is_done(self) -> bool:
        """Whether every row has been answered, or is at fault."""
        return not (self.is_waiting or any(self._held.values()))

    def give(self, worker: int, window: int, workers: int = 1) -> Share:
        """What one of so many workers is to get now, so that it has `window` rows at most."""
        held = self._held.setdefault(worker, {})
        if self._is_alone(held):
            return Share([], is_last=True)
        if not held and self._suspects:
            rows = [self._suspects.popleft()]
        else:
            self._read(workers * window)
            unanswered = len(self._waiting) + sum(map(len, self._held.values()))
            share = max(FEWEST, math.ceil(unanswered / workers))
            room = min(window, share) - len(held)
            rows = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        held.update((row.number, row) for row in rows)
        return Share(rows, not self._waiting or self._is_alone(held))

    def take(self, worker: int, answered: Iterable[Row]) -> Iterator[Row]:
        """The rows that a worker has answered, and those at fault that waited for an answer. Raises
        InternalError for a row that it did not have."""
        for row in answered:
            asked = self._held.get(worker, {}).pop(row.number, None)
            if asked is None:
                raise InternalError(f"Row {row.number} came from a worker twice or unasked.")
            row.cells, row.question = asked.cells, row.question or asked.question
            self._deaths.pop(row.number, None)
            yield row
            yield from self.end()

    def lose(self, worker: int) -> int:
        """A worker died; how many rows it had."""
        held = self._held.pop(worker, {})
        for row in reversed(held.values()):
            self._deaths[row.number] += 1
            if self._deaths[row.number] == MAX_DEATHS:
                row.error = WORKER_DIED
                self._at_fault.append(row)
            elif self._deaths[row.number] == MAX_DEATHS - 1:
                self._suspects.appendleft(row)
            else:
                self._waiting.appendleft(row)
        return len(held)

    def end(self) -> Iterator[Row]:
        """The rows at fault, each once."""
        while self._at_fault:
            yield self._at_fault.pop()

    def _is_alone(self, held: dict[int, Row]) -> bool:
        return any(self._deaths[number] == MAX_DEATHS - 1 for number in held)

    def _read(self, count: int) -> None:
        """Have so many rows waiting, if there are."""
        more = islice(self._source, max(0, count - len(self._waiting)))
        self._waiting.extend(more)
        self._exhausted |= len(self._waiting) < count
