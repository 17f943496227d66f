"""How fast a run is and how long it still takes, by a clock that the tests move."""

import logging

import pytest

from mmrag_batch.progress import LOG_EVERY
from mmrag_batch.records import Status
from mmrag_batch.run import progress
from mmrag_batch.run.progress import SMOOTHED, Rate, RowProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def counts(ok: int, error: int = 0) -> dict[Status, int]:
    return {"ok": ok, "degraded": 0, "error": error}


def test_nothing_is_known_of_a_rate_before_the_first_row() -> None:
    rate = Rate()
    assert rate.value is None
    rate.add(0, 10)
    assert rate.value is None


def test_a_steady_rate_is_known_at_once_and_kept() -> None:
    rate = Rate()
    for _ in range(1000):
        rate.add(8, 4)
        assert rate.value == pytest.approx(2)


def test_rows_that_come_in_batches_are_those_of_the_time_they_took() -> None:
    rate = Rate()
    for seconds in (4.0, *[0.0] * 7):
        rate.add(1, seconds)
    assert rate.value == pytest.approx(2)


def test_a_rate_that_changes_is_followed_within_minutes() -> None:
    rate = Rate()
    for _ in range(100):
        rate.add(10, 1)
    for _ in range(int(3 * SMOOTHED)):
        rate.add(1, 1)
    assert rate.value == pytest.approx(1, rel=0.5)


def test_what_was_kept_and_the_loading_of_models_are_left_out(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmrag_batch")
    with RowProgress(1000, quiet=False, done=600) as rows:
        clock.now = 300  # the models are loaded
        rows.begin()
        for step in range(1, 41):
            clock.now += 1
            rows.update(counts(600 + 2 * step, error=1 if step > 30 else 0))
    assert caplog.messages == ["660 of 1,000 rows, 2.0 rows/s, 3 min left"]


def test_rows_without_an_answer_are_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmrag_batch")
    with RowProgress(100, quiet=False) as rows:
        rows.begin()
        clock.now = LOG_EVERY
        rows.update(counts(9, error=1))
    assert caplog.messages == ["10 of 100 rows, 0.3 rows/s, 4 min left, 1 error"]
