"""Which rows are in whose hands, where workers elsewhere have them and may die.

What a worker had when it died is asked again: of any worker, together with other rows, then alone,
since one of them may have been the cause. A row that was there at `MAX_DEATHS` deaths, the last
time alone, is at fault, and gets an error. All others get their answers.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mmrag_batch.errors import InternalError
from mmrag_batch.records import Problem, Row

MAX_DEATHS = 3
"""Deaths of workers that a row may be in the hands of."""
WORKER_DIED = Problem(
    "worker_died",
    f"Each of the {MAX_DEATHS} workers that had this row died, the last one with this row alone.",
)


class Share(NamedTuple):
    """Rows for a worker, and whether no more of them follow until it has answered those it has."""

    rows: list[Row]
    is_last: bool


class Assignments:
    """Hands out rows, each to one worker at a time. Workers are known by any number.

    A row is only read when there is a worker for it. Rows with an error wait for an answer: where
    no row gets one, it is not the rows that kill workers.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._source = iter(rows)
        self._exhausted = False
        self._again: deque[Row] = deque()
        """Rows that were in the hands of a worker that died."""
        self._suspects: deque[Row] = deque()
        """Rows to ask alone."""
        self._at_fault: list[Row] = []
        self._deaths: Counter[int] = Counter()
        """Of each row that is not answered, by number."""
        self._held: dict[int, dict[int, Row]] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether there may be rows that nobody has."""
        return bool(not self._exhausted or self._again or self._suspects)

    @property
    def is_done(self) -> bool:
        """Whether every row has been answered, or is at fault."""
        return not (self.is_waiting or any(self._held.values()))

    def give(self, worker: int, window: int) -> Share:
        """What a worker is to get now, so that it has `window` rows at most."""
        held = self._held.setdefault(worker, {})
        if self._is_alone(held):
            return Share([], is_last=True)
        if not held and self._suspects:
            rows = [self._suspects.popleft()]
        else:
            rows = []
            while len(held) + len(rows) < window and (row := self._next()) is not None:
                rows.append(row)
        held.update((row.number, row) for row in rows)
        return Share(rows, is_last=len(held) < window)

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
        for row in held.values():
            self._deaths[row.number] += 1
            if self._deaths[row.number] == MAX_DEATHS:
                row.error = WORKER_DIED
                self._at_fault.append(row)
            elif self._deaths[row.number] == MAX_DEATHS - 1:
                self._suspects.append(row)
            else:
                self._again.append(row)
        return len(held)

    def end(self) -> Iterator[Row]:
        """The rows at fault, each once."""
        while self._at_fault:
            yield self._at_fault.pop()

    def _is_alone(self, held: dict[int, Row]) -> bool:
        return any(self._deaths[number] == MAX_DEATHS - 1 for number in held)

    def _next(self) -> Row | None:
        if self._again:
            return self._again.popleft()
        row = None if self._exhausted else next(self._source, None)
        self._exhausted = row is None
        return row
