"""How far a run is: a bar on a terminal, elsewhere a line in the log now and then."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmrag_batch.progress import LOG_EVERY
from mmrag_batch.records import Status

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


class RowProgress:
    """Counts rows from `done` up to `total`; a context manager.

    `quiet` hides the bar; lines are log records of level INFO.
    """

    def __init__(self, total: int, *, quiet: bool, done: int = 0) -> None:
        # disable=None: only on a terminal.
        self._bar = tqdm(total=total, initial=done, unit="row", disable=True if quiet else None)
        self._done = done
        self._total = total
        self._started = self._logged = monotonic()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._bar)
        if not self._bar.disable:
            self._open.enter_context(logging_redirect_tqdm())
        return self

    def update(self, statuses: Mapping[Status, int]) -> None:
        """One more row is written; `statuses` counts all of them so far."""
        degraded, error = statuses["degraded"], statuses["error"]
        if not self._bar.disable:
            self._bar.set_postfix(degraded=degraded, error=error, refresh=False)
            self._bar.update(sum(statuses.values()) - self._bar.n)
        elif (now := monotonic()) - self._logged >= LOG_EVERY:
            self._logged = now
            rows = sum(statuses.values())
            rate = (rows - self._done) / (now - self._started)
            log.info(
                f"{rows:,} of {self._total:,} rows, {rate:.1f} rows/s, "
                f"{degraded:,} degraded, {error:,} errors"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
