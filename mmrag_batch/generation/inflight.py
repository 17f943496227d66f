"""Many requests at a time: a window of them kept full, results as they finish."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from mmrag_batch.generation.engine import Request, Result

ResultFuture = Future[Result]
Submit = Callable[[Request], ResultFuture]


def as_completed(
    requests: Iterable[Request],
    ask: Submit,
    window: int,
    *,
    patience: float | None = None,
) -> Generator[tuple[Request, ResultFuture], None, None]:
    """Ask up to `window` requests at once; yield each with its future when that is done.

    The next request is taken whenever one is done, never in chunks. When the consumer stops early,
    what is still asked is cancelled. When none is done for `patience` seconds, all that are asked
    are yielded with a future that raises TimeoutError, and no more are taken.
    """
    source = iter(requests)
    pending: dict[ResultFuture, Request] = {}
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
            if not pending:
                return
            try:
                future = completed.get(timeout=patience)
            except Empty:
                break
            yield pending.pop(future), future
        for request in list(pending.values()):
            expired: ResultFuture = Future()
            expired.set_exception(TimeoutError())
            yield request, expired
    finally:
        for future in pending:
            future.cancel()
