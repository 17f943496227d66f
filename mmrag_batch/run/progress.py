"""How far a run is: a bar on a terminal, elsewhere a line in the log now and then."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmrag_batch.progress import LOG_EVERY, duration
from mmrag_batch.records import Status

SMOOTHED = 60.0
"""Seconds after which what was counts 1/e."""
log = logging.getLogger(__name__)
T = TypeVar("T")


def told(items: Iterable[T], what: str) -> Iterator[T]:
    """The items as they are, with a line in the log now and then of how many there were."""
    logged = monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if not count % 1024 and monotonic() - logged >= LOG_EVERY:
            logged = monotonic()
            log.info("%s %s.", f"{count:,}", what)


class Rate:
    """Things a second, smoothed: what was before the last minute counts ever less."""

    def __init__(self) -> None:
        self._count = self._seconds = 0.0

    def add(self, count: int, seconds: float) -> None:
        """So many more in so many seconds more."""
        fading = math.exp(-seconds / SMOOTHED)
        self._count = self._count * fading + count
        self._seconds = self._seconds * fading + seconds

    @property
    def value(self) -> float | None:
        """None as long as nothing is known."""
        return self._count / self._seconds if self._count and self._seconds > 0 else None


class RowProgress:
    """Counts rows from `done` up to `total`; a context manager.

    `quiet` hides the bar; lines are log records of level INFO.
    """

    def __init__(self, total: int, *, quiet: bool, done: int = 0) -> None:
        self._total, self._quiet, self._done = total, quiet, done
        self._bar: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """The models are loaded, and rows are asked from now on."""
        self._rate, self._looked = Rate(), monotonic()
        self._logged = self._looked
        bar = tqdm(
            total=self._total,
            initial=self._done,
            disable=True if self._quiet else None,  # None: only on a terminal
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} rows{postfix}",
            miniters=0,
        )
        self._open.enter_context(bar)
        if not bar.disable:
            self._open.enter_context(logging_redirect_tqdm())
        self._bar = bar

    def update(self, statuses: Mapping[Status, int]) -> None:
        """More rows are done; `statuses` counts all of them so far."""
        rows, now = sum(statuses.values()), monotonic()
        self._rate.add(rows - self._done, now - self._looked)
        self._done, self._looked = rows, now
        if not self._bar.disable:
            self._bar.set_postfix_str(self._speed(statuses), refresh=False)
            self._bar.update(rows - self._bar.n)
        elif now - self._logged >= LOG_EVERY:
            self._logged = now
            log.info("%s of %s rows, %s", f"{rows:,}", f"{self._total:,}", self._speed(statuses))

    def _speed(self, statuses: Mapping[Status, int]) -> str:
        rate, parts = self._rate.value, []
        if rate is not None:
            parts = [f"{rate:.1f} rows/s", f"{duration((self._total - self._done) / rate)} left"]
        parts += [f"{rows:,} {name}" for name, rows in statuses.items() if rows and name != "ok"]
        return ", ".join(parts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
