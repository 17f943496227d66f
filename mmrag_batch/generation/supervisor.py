"""Keeps a run going when the engine under it dies.

What an engine was asked when it died is put back and asked again of a new one, each request alone:
then a request that kills the engine once more is known to be the one that does, and gets an error.
All others get their answers.

A server elsewhere may also be restarted by others. There the requests are asked once more together,
and a request is at fault only when two more deaths found it alone.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.inflight import ResultFuture, as_completed
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

    `start` starts a worker; the first one at once. Raises UnavailableError for an engine that keeps
    dying. `window` requests are asked at a time. An engine that answers none of them for
    `row_timeout` seconds is as good as dead. `elsewhere`: it is not ours, and may die of something
    else, any number of times.
    """

    def __init__(
        self,
        start: Callable[[], Worker],
        *,
        window: int,
        row_timeout: float | None = None,
        elsewhere: bool = False,
    ) -> None:
        self._start = start
        self._elsewhere = elsewhere
        self._tries_alone = 2 if elsewhere else 1
        self._row_timeout = row_timeout
        self._worker: Worker | None = start()
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
        """End the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _answers(
        self, requests: Iterable[Request], failures: list[FailedRequest]
    ) -> Iterator[Result]:
        """Results until the engine dies, if it does; unanswered ones are appended to `failures`."""
        completed = as_completed(requests, self._ask, self._concurrency, patience=self._row_timeout)
        for request, future in completed:
            try:
                result = future.result()
            except (EngineDied, TimeoutError) as error:
                failures.append((request, error))
                continue
            self._deaths_in_a_row = 0
            yield from self._error_results
            self._error_results.clear()
            yield result
        if failures:
            self._record_death(len(failures))

    def _answer_alone(self, request: Request) -> Generator[Result, None, Exception | None]:
        """The result of a request if it has one, else what it fails of each time."""
        for _ in range(self._tries_alone):
            failures: list[FailedRequest] = []
            yield from self._answers([request], failures)
            if not failures:
                return None
        return failures[0][1]

    def _ask(self, request: Request) -> ResultFuture:
        if self._worker is None:
            self._worker = self._start()
        return self._worker.ask(request)

    def _record_death(self, count: int) -> None:
        self.close()
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
