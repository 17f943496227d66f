"""Keeps a run going when the engine under it dies.

What an engine was asked when it died is put back and asked again of a new one, each request alone:
then a request that kills the engine once more is known to be the one that does, and gets an error.
All others get their answers.

Several engines, such as one for each GPU, are several workers. A death costs the requests that its
own worker had; meanwhile the others finish theirs and wait.

A server elsewhere may also be restarted by others. There the requests are asked once more together,
and a request is at fault only when two more deaths found it alone.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.inflight import ResultFuture, as_completed, at_once
from mmrag_batch.records import Problem

MAX_DEATHS = 20
"""Deaths after which a run gives up; resuming it starts anew."""
MAX_DEATHS_IN_A_ROW = 5
"""The same, without one answer in between: then it is not the requests that kill the engine."""
log = logging.getLogger(__name__)


class EngineDied(Exception):  # noqa: N818  # an event that is dealt with here
    """The process that was to answer a request is gone."""


FailedRequest = tuple[Request, Exception]
"""A request that was not answered, and EngineDied, or TimeoutError if the engine was stuck."""


class Worker(Protocol):
    """A running engine."""

    def ask(self, request: Request, /) -> ResultFuture:
        """The future of the answer. It raises EngineDied, now or later, if the engine dies."""
        ...

    def close(self) -> None:
        """Give back what it holds, alive or dead."""
        ...


class Supervisor:
    """An engine that starts a new worker in place of one that died.

    Each of `starts` starts a worker; the first ones at once. Raises UnavailableError for an engine
    that keeps dying. `window` requests are asked at a time, of all workers together; those of one
    row, which share its images, of one worker. One that answers none of its own for `row_timeout`
    seconds is as good as dead. `elsewhere`: it is not ours, and may die of something else, any
    number of times.
    """

    def __init__(
        self,
        *starts: Callable[[], Worker],
        window: int,
        row_timeout: float | None = None,
        elsewhere: bool = False,
    ) -> None:
        self._starts = starts
        self._elsewhere = elsewhere
        self._tries_alone = 2 if elsewhere else 1
        self._row_timeout = row_timeout
        self._workers: dict[int, Worker] = {}
        self._places: dict[tuple[int, int], int] = {}  # whom each open request was asked of
        self._last = (-1, 0)  # the row that was asked last, and of whom
        self._start_missing()
        self._concurrency = window
        self.window = window + MAX_DEATHS_IN_A_ROW  # error results wait for an answer
        self._error_results: list[Result] = []
        self._deaths = 0
        self._deaths_in_a_row = 0

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Yield one result for each request, as they finish."""
        source = iter(requests)
        exhausted = False

        def requests_until_death() -> Iterator[Request]:
            nonlocal exhausted
            while not suspects:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    return
                yield request

        while not exhausted:
            suspects: list[FailedRequest] = []
            yield from self._answers(requests_until_death(), suspects)
            if self._elsewhere and len(suspects) > 1:
                again, suspects = suspects, []
                yield from self._answers((request for request, _ in again), suspects)
            # A row's other requests are not tried after an error.
            errors_by_row: dict[int, Exception] = {}
            for request, _ in suspects:
                row, _ = request.key
                if row not in errors_by_row:
                    error = yield from self._answer_alone(request)
                    if error is not None:
                        errors_by_row[row] = error
                if row in errors_by_row:
                    self._error_results.append(_error_result(request, errors_by_row[row]))
        yield from self._error_results
        self._error_results.clear()

    def close(self) -> None:
        """End the workers."""
        self._close(list(self._workers))

    def _answers(
        self, requests: Iterable[Request], failures: list[FailedRequest]
    ) -> Iterator[Result]:
        """Results until the engine dies, if it does; unanswered ones are appended to `failures`."""
        self._places.clear()
        dead: set[int] = set()
        completed = as_completed(
            requests,
            self._ask,
            self._concurrency,
            patience=self._row_timeout,
            place=lambda request: self._places[request.key],
        )
        for request, future in completed:
            place = self._places.pop(request.key)
            try:
                result = future.result()
            except (EngineDied, TimeoutError) as error:
                failures.append((request, error))
                dead.add(place)
                continue
            self._deaths_in_a_row = 0
            yield from self._error_results
            self._error_results.clear()
            yield result
        if failures:
            self._record_death(dead, len(failures))

    def _answer_alone(self, request: Request) -> Generator[Result, None, Exception | None]:
        """The result of a request if it has one, else what it fails of each time."""
        for _ in range(self._tries_alone):
            failures: list[FailedRequest] = []
            yield from self._answers([request], failures)
            if not failures:
                return None
        return failures[0][1]

    def _ask(self, request: Request) -> ResultFuture:
        self._start_missing()
        row, place = request.key[0], self._last[1]
        if self._last[0] != row:
            open_requests = Counter(self._places.values())
            place = min(range(len(self._starts)), key=open_requests.__getitem__)
        self._last, self._places[request.key] = (row, place), place
        return self._workers[place].ask(request)

    def _start_missing(self) -> None:
        """Start the workers that are not there: at first all, later those that died."""
        missing = [place for place in range(len(self._starts)) if place not in self._workers]
        started = at_once([self._starts[place] for place in missing])
        for place, future in zip(missing, started):
            if not future.exception():
                self._workers[place] = future.result()
        for future in started:
            if future.exception():
                self.close()
            future.result()

    def _close(self, places: Iterable[int]) -> None:
        for closed in at_once([self._workers.pop(place).close for place in places]):
            closed.result()

    def _record_death(self, places: Iterable[int], count: int) -> None:
        self._close(places)
        self._deaths += 1
        self._deaths_in_a_row += 1
        most = math.inf if self._elsewhere else MAX_DEATHS
        if self._deaths >= most or self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW * self._tries_alone:
            raise UnavailableError(
                f"The engine died {self._deaths} times, {self._deaths_in_a_row} of them without an "
                "answer in between. Look above for its own last words, and at the memory of the "
                "device; --engine-rows 1 asks for the least. Then run the same command again."
            )
        event = (
            "The server went away" if self._elsewhere else "The engine died and is started again"
        )
        log.warning("%s; the %d requests it had are asked again.", event, count)


def _error_result(request: Request, error: Exception) -> Result:
    if isinstance(error, TimeoutError):
        problem = Problem(
            "timeout", "The engine was stuck twice at this row, the second time alone."
        )
    else:
        message = "The engine died each time that it was asked this row, in the end alone."
        problem = Problem("engine_crashed", message)
    return Result(request.key, error=problem)
