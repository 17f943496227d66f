"""Exactly-once, bounded memory and a clean end, with stages that misbehave as far as their
contract allows, and further."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrag_batch.errors import InputError, InternalError
from mmrag_batch.execute.local import READ_AHEAD, rows_in_flight, run_stages
from mmrag_batch.records import Row
from mmrag_batch.stages import Stage, prefetch


def make_rows(count: int) -> Iterator[Row]:
    for number in range(count):
        yield Row(number=number, line=number + 2, id=str(number), cells={})


class InBatches:
    """Waits for a full window, then gives it back shuffled."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._random = random.Random(window)

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        source = iter(rows)
        while batch := list(islice(source, self.window)):
            self._random.shuffle(batch)
            yield from batch


class HoldingBack:
    """Holds every row back as long as it may, and lets the others pass it."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._random = random.Random(window)

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        held: list[tuple[int, Row]] = []
        for taken, row in enumerate(rows):
            held.append((taken, row))
            while held and taken - held[0][0] >= self.window - 1:
                yield held.pop(0)[1]
            if len(held) > 1 and self._random.random() < 0.8:
                yield held.pop(self._random.randrange(1, len(held)))[1]
        yield from (row for _, row in reversed(held))


class Ahead:
    """Reads ahead in a thread of its own, as the generation stage does."""

    def __init__(self, window: int) -> None:
        self.window = window + 2

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        yield from prefetch(rows, self.window - 2)


class Straggling:
    """Works on each row in a thread; every seventh takes 100 times as long, and is overtaken."""

    def __init__(self, window: int) -> None:
        self.window = window

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        ready: list[Row] = []
        changed = threading.Condition()
        finished = False
        working = 0

        def work(row: Row) -> None:
            nonlocal working
            time.sleep(0.02 if row.number % 7 == 0 else 0.0002)
            with changed:
                ready.append(row)
                working -= 1
                changed.notify()

        def take() -> None:
            nonlocal finished, working
            for row in rows:
                with changed:
                    working += 1
                threading.Thread(target=work, args=(row,)).start()
            with changed:
                finished = True
                changed.notify()

        taker = threading.Thread(target=take)
        taker.start()
        while True:
            with changed:
                changed.wait_for(lambda: ready or (finished and not working))
                if not ready:
                    break
                row = ready.pop()
            yield row
        taker.join()


class Spoiling:
    """Does something to each row on its way."""

    window = 1

    def __init__(self, spoil: Callable[[Row], Sequence[Row]]) -> None:
        self._spoil = spoil

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        for row in rows:
            yield from self._spoil(row)


def run_watched(rows: Iterable[Row], stages: Sequence[Stage], write: Callable[[Row], None]) -> None:
    """`run`, failing instead of hanging, and failing where a thread is left behind."""
    errors: list[BaseException] = []
    before = set(threading.enumerate())

    def work() -> None:
        try:
            run_stages(rows, stages, write)
        except BaseException as error:
            errors.append(error)

    runner = threading.Thread(target=work, daemon=True)
    runner.start()
    runner.join(20)
    assert not runner.is_alive(), "the run hangs"
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert not left, f"left behind: {left}"
    if errors:
        raise errors[0]


stages_of_any_kind = st.lists(
    st.builds(
        lambda kind, window: kind(window),
        st.sampled_from([InBatches, HoldingBack, Ahead]),
        st.integers(1, 40),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stages=stages_of_any_kind, count=st.integers(0, 300))
def test_every_row_is_kept_once_and_few_are_in_flight(stages: list[Stage], count: int) -> None:
    read = 0
    written: list[int] = []
    most = 0

    def counted() -> Iterator[Row]:
        nonlocal read, most
        for row in make_rows(count):
            read += 1
            most = max(most, read - len(written))
            yield row

    run_watched(counted(), stages, lambda row: written.append(row.number))
    assert sorted(written) == list(range(count))
    assert most <= rows_in_flight(stages)


def test_the_bound_of_rows_in_flight_does_not_grow_with_the_input() -> None:
    stages: list[Stage] = [InBatches(8), HoldingBack(5)]
    started = threading.Event()
    read: list[int] = []

    def slow_write(row: Row) -> None:
        if not started.is_set():
            started.set()
            time.sleep(0.3)  # everything before it fills up
            assert len(read) <= rows_in_flight(stages)

    def counted() -> Iterator[Row]:
        for row in make_rows(2000):
            read.append(row.number)
            yield row

    run_watched(counted(), stages, slow_write)
    assert len(read) == 2000
    assert rows_in_flight(stages) < 200


def test_stragglers_that_are_overtaken_stall_nothing_for_good() -> None:
    written: list[int] = []
    stages: list[Stage] = [Straggling(6), InBatches(16), Straggling(12)]
    run_watched(make_rows(150), stages, lambda row: written.append(row.number))
    assert sorted(written) == list(range(150))


def test_a_row_that_all_others_overtake_neither_stalls_the_run_nor_lets_it_grow() -> None:
    class Keeping:
        """Keeps the first row until its input ends, whatever it promised."""

        window = 1

        def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
            source = iter(rows)
            first = list(islice(source, 1))
            yield from source
            yield from first

    read = 0
    most = 0
    written: list[int] = []

    def counted() -> Iterator[Row]:
        nonlocal read, most
        for row in make_rows(1000):
            read += 1
            most = max(most, read - len(written))
            yield row

    stages: list[Stage] = [Ahead(16), Keeping()]
    run_watched(counted(), stages, lambda row: written.append(row.number))
    assert written == [*range(1, 1000), 0]
    assert most <= rows_in_flight(stages)


def test_a_run_that_is_stopped_finishes_what_stages_hold_and_reads_no_more() -> None:
    read: list[int] = []
    written: list[int] = []

    def counted() -> Iterator[Row]:
        for row in make_rows(10_000):
            read.append(row.number)
            yield row

    stages: list[Stage] = [InBatches(9), Ahead(8)]
    run_stages(
        counted(),
        stages,
        lambda row: written.append(row.number),
        is_stopped=lambda: len(written) >= 50,
    )
    assert len(set(written)) == len(written)
    assert 50 <= len(written) < 50 + 9 + 8 + READ_AHEAD
    assert len(read) <= 50 + rows_in_flight(stages)


def test_stages_work_at_the_same_time() -> None:
    class Slow:
        window = 1

        def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
            for row in rows:
                time.sleep(0.01)
                yield row

    started = time.monotonic()
    run_watched(make_rows(30), [Slow(), Slow(), Slow()], lambda row: None)
    assert time.monotonic() - started < 0.65  # one after the other: 0.9 s


def test_without_stages_rows_go_straight_to_the_writer() -> None:
    written: list[int] = []
    run_watched(make_rows(3), [], lambda row: written.append(row.number))
    assert written == [0, 1, 2]


@pytest.mark.parametrize("place", ["reader", "first stage", "last stage", "writer"])
def test_an_exception_anywhere_ends_the_run_and_is_raised(place: str) -> None:
    def spoil(row: Row) -> list[Row]:
        if row.number == 70:
            raise InputError("row 70")
        return [row]

    def broken(rows: Iterable[Row]) -> Iterator[Row]:
        return (spoil(row)[0] for row in rows)

    stages: list[Stage] = [Ahead(3), InBatches(9), Ahead(8)]
    if place == "first stage":
        stages.insert(0, Spoiling(spoil))
    if place == "last stage":
        stages.append(Spoiling(spoil))
    written: list[int] = []

    def write(row: Row) -> None:
        if place == "writer":
            spoil(row)
        written.append(row.number)

    rows = make_rows(10_000)
    with pytest.raises(InputError, match="row 70"):
        run_watched(broken(rows) if place == "reader" else rows, stages, write)
    assert len(set(written)) == len(written)
    assert 70 not in written
    assert next(rows).number < 1000  # the rest was never read


def test_a_failing_stage_between_threads_leaves_none_of_them_behind() -> None:
    class Failing:
        """Fails with a half-read thread of its own, which the traceback keeps alive."""

        window = 8

        def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
            for row in prefetch(rows, 2):
                if row.number == 70:
                    raise InputError("row 70")
                yield row

    with pytest.raises(InputError, match="row 70"):
        run_watched(make_rows(10_000), [Ahead(3), Failing(), Ahead(8)], lambda row: None)


def test_a_stage_that_loses_a_row_is_found_out() -> None:
    lossy = Spoiling(lambda row: [] if row.number == 3 else [row])
    lossy.window = 10
    with pytest.raises(InternalError, match="Row 3 went into the stages and never came out"):
        run_watched(make_rows(6), [lossy], lambda row: None)


def test_a_stage_that_doubles_a_row_is_found_out() -> None:
    with pytest.raises(InternalError, match="Row 0 came out of the stages twice"):
        run_watched(make_rows(5), [Spoiling(lambda row: [row, row])], lambda row: None)


def test_a_stage_that_makes_up_a_row_is_found_out() -> None:
    stray = Row(number=99, line=1, id="99", cells={})
    with pytest.raises(InternalError, match="Row 99 came out"):
        run_watched(make_rows(5), [Spoiling(lambda row: [stray])], lambda row: None)
