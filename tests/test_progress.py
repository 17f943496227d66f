import logging
import threading
from collections.abc import Callable

import pytest

from mmrag_batch import progress
from mmrag_batch.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (120, "2 min"), (5400, "1.5 h")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_line_says_how_far_a_step_is_and_how_long_it_still_takes() -> None:
    with Progress("Hashing", 4_000_000_000, "B") as hashing:
        assert hashing.line(1) == "Hashing: 0.0 GB of 4.0 GB, just begun"
        hashing.advance(1_000_000_000)
        assert hashing.line(40) == "Hashing: 1.0 GB of 4.0 GB, 2 min left"
    with Progress("Embedding", 1200, "rows") as embedding:
        embedding.advance(600)
        assert embedding.line(7) == "Embedding: 600 of 1,200 rows, 7 s left"


def test_what_cannot_be_counted_is_told_by_the_clock() -> None:
    with Progress("Writing a.onnx", expected=60) as writing:
        assert writing.line(20) == "Writing a.onnx: for 20 s now, 40 s left or so"
        assert writing.line(300) == "Writing a.onnx: for 5 min now"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """Waits until a progress has said something, with hardly a pause between its lines."""
    monkeypatch.setattr(progress, "LOG_EVERY", 0.001)
    caplog.set_level(logging.INFO, "mmrag_batch.progress")
    heard = threading.Event()

    class Heard(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            heard.set()
            return True

    listener = Heard()
    progress.log.addFilter(listener)
    monkeypatch.setattr(progress.log, "filters", [listener])
    return lambda: heard.wait(60)


def test_a_step_that_does_not_come_back_is_not_silent(
    said: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> None:
    with Progress("Writing a.onnx"):
        assert said()
    assert caplog.messages[0].startswith("Writing a.onnx: for 0 s now")
