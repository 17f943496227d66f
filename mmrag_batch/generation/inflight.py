"""Many requests at a time: a window of them kept full, results as they finish."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

from mmrag_batch.generation.engine import Request, Result

ResultFuture = Future[Result]
Submit = Callable[[Request], ResultFuture]
T = TypeVar("T")


def as_completed(
    requests: Iterable[Request],
    ask: Submit,
    window: int,
    *,
    patience: float | None = None,
    place: Callable[[Request], int] = lambda _: 0,
) -> Generator[tuple[Request, ResultFuture], None, None]:
    """Ask up to `window` requests at once; yield each with its future when that is done.

    The next request is taken whenever one is done, never in chunks. When the consumer stops early,
    what is still asked is cancelled. `place` says who was asked. When one of them is done with none
    of its requests for `patience` seconds, these are yielded with a future that raises
    TimeoutError, and no more are taken.
    """
    source = iter(requests)
    pending: dict[ResultFuture, Request] = {}
    asked: Counter[int] = Counter()  # how many are pending, by place
    heard: dict[int, float] = {}  # when the place gave the last one, or was asked the first
    completed: SimpleQueue[ResultFuture] = SimpleQueue()
    exhausted = False
    try:
        while True:
            while not exhausted and len(pending) < window:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                future = ask(request)
                pending[future] = request
                future.add_done_callback(completed.put)
                where = place(request)
                if not asked[where]:
                    heard[where] = monotonic()
                asked[where] += 1
            if not pending:
                return
            silent = min((where for where in asked if asked[where]), key=heard.__getitem__)
            left = None if patience is None else max(0, heard[silent] + patience - monotonic())
            if left == 0:
                theirs = [future for future, request in pending.items() if place(request) == silent]
                if not any(future.done() for future in theirs):
                    exhausted, asked[silent] = True, 0
                    for future in theirs:
                        future.cancel()
                        expired: ResultFuture = Future()
                        expired.set_exception(TimeoutError())
                        yield pending.pop(future), expired
                    continue
            try:
                future = completed.get(timeout=left)
            except Empty:
                continue
            if future in pending:  # else it is too late
                request = pending.pop(future)
                where = place(request)
                asked[where] -= 1
                heard[where] = monotonic()
                yield request, future
    finally:
        for future in pending:
            future.cancel()


def at_once(calls: Sequence[Callable[[], T]]) -> list[Future[T]]:
    """What became of each call: of several in threads of their own, of one in this thread."""
    if len(calls) > 1:
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(call) for call in calls]
            wait(futures)
            return futures
    done: list[Future[T]] = []
    for call in calls:
        done.append(Future())
        try:
            done[-1].set_result(call())
        except Exception as error:
            done[-1].set_exception(error)
    return done
