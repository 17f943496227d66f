from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from time import sleep

import pytest

from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.supervisor import (
    MAX_DEATHS,
    MAX_DEATHS_IN_A_ROW,
    EngineDied,
    Supervisor,
)


class Mortal:
    """A worker that answers from a thread what has come together, until poison is among it.

    Then it dies, as a process does: with all that it has not answered.
    """

    def __init__(self, graveyard: "Graveyard") -> None:
        self._graveyard = graveyard
        self._asked: SimpleQueue[tuple[tuple[int, int], Future[Result]] | None] = SimpleQueue()
        self._dead = False
        self.closed = False
        self.given: list[tuple[int, int]] = []
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, request: Request, /) -> Future[Result]:
        self.given.append(request.key)
        future: Future[Result] = Future()
        self._asked.put((request.key, future))
        return future

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._asked.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._asked.get()) is not None:
            sleep(0.001)
            batch = [first]
            while len(batch) < self._graveyard.batch and not self._asked.empty():
                if (item := self._asked.get()) is None:
                    return
                batch.append(item)
            self._finish(batch)

    def _finish(self, batch: list[tuple[tuple[int, int], "Future[Result]"]]) -> None:
        killers = [row for (row, _), _ in batch if row in self._graveyard.poison]
        if killers and not self._dead:
            self._dead = True
            self._graveyard.deaths.append(killers[0])
        for key, future in batch:
            if not future.set_running_or_notify_cancel():
                continue
            if self._dead:
                future.set_exception(EngineDied())
            else:
                future.set_result(Result(key, text=f"answer {key}"))


LAST = 100


class Graveyard:
    """Starts workers, and remembers them and the first row of what killed them."""

    def __init__(self, *poison: int, batch: int = 4) -> None:
        self.poison = frozenset(poison)
        self.batch = batch
        self.workers: list[Mortal] = []
        self.deaths: list[int] = []

    def __call__(self) -> Mortal:
        self.workers.append(Mortal(self))
        return self.workers[-1]


def requests(count: int = LAST) -> Iterator[Request]:
    for key in range(count):
        yield Request((key, 0), (1, 2))


def answers(engine: Supervisor, count: int = LAST) -> dict[int, Result]:
    results = list(engine.generate(requests(count)))
    assert len({result.key for result in results}) == len(results) == count
    return {result.key[0]: result for result in results}


def errors(results: dict[int, Result]) -> dict[int, str]:
    return {key: result.error.code for key, result in results.items() if result.error}


def test_without_deaths_every_request_is_asked_once() -> None:
    start = Graveyard()
    assert errors(answers(Supervisor(start, window=8))) == {}
    assert len(start.workers) == 1


@pytest.mark.parametrize("poison", [0, 1, 50, LAST - 1])
@pytest.mark.parametrize("batch", [1, 5])
def test_one_poison_row_is_one_error_row(poison: int, batch: int) -> None:
    start = Graveyard(poison, batch=batch)
    engine = Supervisor(start, window=8)
    assert errors(answers(engine)) == {poison: "engine_crashed"}
    assert start.deaths == [poison, poison]
    assert len(start.workers) <= 3
    assert all(worker.closed for worker in start.workers[:2])


def test_poison_rows_side_by_side_are_all_found() -> None:
    start = Graveyard(20, 21, 23)
    assert errors(answers(Supervisor(start, window=8))) == dict.fromkeys(
        (20, 21, 23), "engine_crashed"
    )


def test_a_death_that_no_row_caused_is_no_error_row() -> None:
    graveyard = Graveyard(30)

    def start() -> Mortal:
        if graveyard.workers:
            graveyard.poison = frozenset()  # it was an accident: the next worker takes that row
        return graveyard()

    assert errors(answers(Supervisor(start, window=8))) == {}
    assert graveyard.deaths == [30]
    assert len(graveyard.workers) == 2


def test_an_engine_that_dies_of_everything_ends_the_run() -> None:
    start = Graveyard(*range(LAST))
    with pytest.raises(UnavailableError, match="without an answer in between"):
        list(Supervisor(start, window=8).generate(requests()))
    assert len(start.deaths) == MAX_DEATHS_IN_A_ROW


def test_an_engine_that_keeps_dying_ends_the_run() -> None:
    start = Graveyard(*range(0, LAST, 4))
    with pytest.raises(UnavailableError, match=f"died {MAX_DEATHS} times"):
        list(Supervisor(start, window=1).generate(requests()))


def test_verdicts_wait_for_the_next_answer() -> None:
    results = Supervisor(Graveyard(*range(50, LAST)), window=1).generate(requests())
    given = [next(results) for _ in range(50)]
    assert [result.key[0] for result in given] == list(range(50))
    assert not any(result.error for result in given)
    with pytest.raises(UnavailableError):
        next(results)


def test_no_more_than_the_window_is_asked_ahead() -> None:
    engine = Supervisor(Graveyard(10, 40), window=8)
    taken = 0

    def source() -> Iterator[Request]:
        nonlocal taken
        for request in requests():
            taken += 1
            yield request

    ahead = 0
    for given, _ in enumerate(engine.generate(source())):
        ahead = max(ahead, taken - given)
    assert given == LAST - 1
    assert 4 <= ahead <= engine.window


def test_closing_ends_the_worker_once() -> None:
    start = Graveyard()
    engine = Supervisor(start, window=8)
    engine.close()
    engine.close()
    assert start.workers[0].closed


class Stuck(Mortal):
    """A worker that never comes back from a poison row."""

    def _finish(self, batch: list[tuple[tuple[int, int], "Future[Result]"]]) -> None:
        while any(row in self._graveyard.poison for (row, _), _ in batch) and not self.closed:
            sleep(0.001)
        super()._finish([] if self.closed else batch)


def test_an_engine_that_is_stuck_is_started_again_and_its_row_found() -> None:
    graveyard = Graveyard(50)
    engine = Supervisor(lambda: Stuck(graveyard), window=8, row_timeout=0.1)
    assert errors(answers(engine)) == {50: "timeout"}
    engine.close()


def test_several_workers_answer_side_by_side_and_a_row_is_asked_of_one() -> None:
    start = Graveyard()
    asked = [Request((row, place), (1, 2)) for row in range(60) for place in range(3)]
    engine = Supervisor(start, start, start, window=24)
    results = list(engine.generate(asked))
    assert sorted(result.key for result in results) == [request.key for request in asked]
    places = [{row for row, _ in worker.given} for worker in start.workers]
    assert len(start.workers) == 3
    assert min(map(len, places)) >= 6
    assert sum(map(len, places)) == 60
    engine.close()
    assert all(worker.closed for worker in start.workers)


def test_the_death_of_one_of_several_workers_costs_what_it_had_itself() -> None:
    start = Graveyard(50)
    engine = Supervisor(start, start, window=16)
    assert errors(answers(engine)) == {50: "engine_crashed"}
    assert start.deaths == [50, 50]
    assert len(start.workers) == 4
    again = [key for worker in start.workers for key in worker.given]
    assert len(again) - len(set(again)) <= 16 // 2 + 1  # the other finished its own
    engine.close()


def test_one_of_several_workers_that_is_stuck_is_found_while_the_other_answers() -> None:
    start = Graveyard(50)
    engine = Supervisor(lambda: Stuck(start), lambda: Stuck(start), window=16, row_timeout=0.3)

    def slowly() -> Iterator[Request]:
        for request in requests(2 * LAST):
            if request.key[0] > 60:
                sleep(0.01)  # so that the other always has something to answer
            yield request

    results = {result.key[0]: result for result in engine.generate(slowly())}
    assert errors(results) == {50: "timeout"}
    assert len(results) == 2 * LAST
    order = list(results)
    assert order.index(50) < order.index(2 * LAST - 1)
    engine.close()


def test_where_one_of_several_workers_does_not_start_the_others_are_closed() -> None:
    start = Graveyard()

    def fail() -> Mortal:
        raise UnavailableError("There is no such GPU.")

    with pytest.raises(UnavailableError, match="no such GPU"):
        Supervisor(start, fail, start, window=8)
    assert [worker.closed for worker in start.workers] == [True, True]


def test_of_a_row_that_kills_the_engine_no_other_request_is_tried() -> None:
    start = Graveyard(1, batch=8)
    requests = [Request((row, place), (1, 2)) for row in range(3) for place in range(8)]
    results = list(Supervisor(start, window=24).generate(requests))
    assert sorted(result.key for result in results) == [request.key for request in requests]
    assert {result.key[0] for result in results if result.error} == {1}
    assert len(start.deaths) == 2


@pytest.mark.parametrize("accidents", [1, 3])
def test_elsewhere_an_engine_may_die_of_something_else(accidents: int) -> None:
    graveyard = Graveyard(30, batch=8)

    def start() -> Mortal:
        if len(graveyard.workers) == accidents:
            graveyard.poison = frozenset()
        return graveyard()

    engine = Supervisor(start, window=8, elsewhere=True)
    assert errors(answers(engine)) == {}
    assert graveyard.deaths == [30] * accidents


def test_elsewhere_poison_rows_are_found_however_many() -> None:
    poison = range(0, LAST, 4)
    start = Graveyard(*poison)
    engine = Supervisor(start, window=8, elsewhere=True)
    assert errors(answers(engine)) == dict.fromkeys(poison, "engine_crashed")
    assert len(start.deaths) > MAX_DEATHS


def test_elsewhere_too_an_engine_that_dies_of_everything_ends_the_run() -> None:
    with pytest.raises(UnavailableError, match="without an answer in between"):
        engine = Supervisor(Graveyard(*range(LAST)), window=8, elsewhere=True)
        list(engine.generate(requests()))
