"""A server that misbehaves as it is told, the time that passes beside it, and what an engine leaves
in the environment."""

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest

from mmrag_batch.generation.engines import api
from tests.generation.engines.stand_in import StandIn


class Clock:
    """The time that the engine knows, which passes when it waits; what is due then is done."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due = float("inf")
        self.then: Callable[[], None] = lambda: None
        self.waits: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        if self.now >= self.due:
            self.due = float("inf")
            self.then()
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """What an engine sets for its processes is not for the tests that follow."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(api, "pause", clock.pause)
    monkeypatch.setattr(api, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.stop()
