"""Many requests at a time: a window of them kept full, results as they finish."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from mmrag_batch.generation.engine import Request, Result

Asked = Future[Result]
Ask = Callable[[Request], Asked]


def as_completed(
    requests: Iterable[Request],
    ask: Ask,
    window: int,
    *,
    patience: float | None = None,
) -> Generator[tuple[Request, Asked], None, None]:
    """Ask up to `window` requests at once; yield each with its future when that is done.

    The next request is taken whenever one is done, never in chunks. When the consumer stops early,
    what is still asked is cancelled. When none is done for `patience` seconds, all that are asked
    are yielded with a future that raises TimeoutError, and no more are taken.
    """
    source = iter(requests)
    asked: dict[Asked, Request] = {}
    done: SimpleQueue[Asked] = SimpleQueue()
    exhausted = False
    try:
        while True:
            while not exhausted and len(asked) < window:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                future = ask(request)
                asked[future] = request
                future.add_done_callback(done.put)
            if not asked:
                return
            try:
                future = done.get(timeout=patience)
            except Empty:
                break
            yield asked.pop(future), future
        for request in list(asked.values()):
            late: Asked = Future()
            late.set_exception(TimeoutError())
            yield request, late
    finally:
        for future in asked:
            future.cancel()
