from collections.abc import Iterator
from concurrent.futures import Future

from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.inflight import as_completed


class Desk:
    """Keeps what is asked, and answers the last of them when `size` have come together."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.open: dict[int, Future[Result]] = {}
        self.most = 0

    def __call__(self, request: Request) -> Future[Result]:
        future = self.open[request.key[0]] = Future()
        self.most = max(self.most, len(self.open))
        if len(self.open) == self._size:
            self.answer()
        return future

    def answer(self) -> None:
        key, future = self.open.popitem()
        future.set_result(Result((key, 0), text=str(key)))


def requests(count: int) -> Iterator[Request]:
    for key in range(count):
        yield Request((key, 0), (1,))


def test_a_request_is_taken_for_each_one_that_is_done() -> None:
    desk = Desk(3)
    keys = []
    for request, future in as_completed(requests(10), desk, 3):
        assert future.result().text == str(request.key[0])
        keys.append(request.key[0])
        if request.key[0] == 9:
            desk.answer()
            desk.answer()
    assert keys == [2, 3, 4, 5, 6, 7, 8, 9, 1, 0]
    assert desk.most == 3


def test_what_is_still_asked_is_cancelled_when_the_consumer_leaves() -> None:
    desk = Desk(3)
    results = as_completed(requests(10), desk, 3)
    next(results)
    left = list(desk.open.values())
    results.close()
    assert len(left) == 2
    assert all(future.cancelled() for future in left)


def test_nothing_asked_is_nothing_answered() -> None:
    assert list(as_completed(requests(0), Desk(1), 3)) == []
