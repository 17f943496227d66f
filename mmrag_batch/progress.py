"""How far a long step is: a bar on a terminal, elsewhere a line in the log each half minute."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

LOG_EVERY = 30.0
"""Seconds between two lines."""
BAR_AFTER = 1.0
"""Seconds before a bar is drawn, as most steps need none; and between two looks at its clock."""
log = logging.getLogger(__name__)
T = TypeVar("T")


class Progress:
    """Counts what is done of `total` units, and says it while a step runs, even where a unit takes
    minutes: a thread does. A context manager.

    `done` of them were done before. Where nothing can be counted (`total` is None), `expected` may
    say how many seconds it takes.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        expected: float | None = None,
    ) -> None:
        self.what, self.total, self._unit, self._expected = what, total, unit, expected
        self.done = self._before = done
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        self._started = monotonic()
        self._bar = self._open.enter_context(
            tqdm(
                total=self.total,
                initial=self.done,
                desc=self.what,
                delay=BAR_AFTER,
                unit=self._unit or "it",
                unit_scale=self._unit == "B",
                bar_format="{desc}: {elapsed}" if self.total is None else None,
                leave=self.total is not None,
                miniters=0,
                # None: only on a terminal.
                disable=None if log.isEnabledFor(logging.INFO) else True,
            )
        )
        if not self._bar.disable:
            self._open.enter_context(logging_redirect_tqdm())
        thread = threading.Thread(target=self._tell, name=f"progress: {self.what}", daemon=True)
        thread.start()
        self._open.callback(thread.join)
        self._open.callback(self._ended.set)
        return self

    def advance(self, count: int = 1) -> None:
        """That many more units are done. Threads may call it."""
        with self._lock:
            self.done += count
            self._bar.update(count)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items as they are, each a unit."""
        for item in items:
            yield item
            self.advance()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def _tell(self) -> None:
        while not self._ended.wait(LOG_EVERY if self._bar.disable else BAR_AFTER):
            if self._bar.disable:
                log.info("%s", self.line(monotonic() - self._started))
            else:
                with self._lock:
                    self._bar.update(0)  # `refresh` would leave a line that `close` forgets

    def line(self, elapsed: float) -> str:
        """What there is to say after `elapsed` seconds."""
        if self.total is None:
            parts = [f"for {duration(elapsed)} now"]
            if self._expected is not None and self._expected > elapsed:
                parts.append(f"{duration(self._expected - elapsed)} left or so")
            return f"{self.what}: {', '.join(parts)}"
        share = f"{self._amount(self.done)} of {self._amount(self.total)}"
        if self._unit and self._unit != "B":
            share += f" {self._unit}"
        done, remaining = self.done - self._before, self.total - self.done
        left = f"{duration(elapsed * remaining / done)} left" if done else "just begun"
        return f"{self.what}: {share}, {left}"

    def _amount(self, count: int) -> str:
        return f"{count / 1e9:.1f} GB" if self._unit == "B" else f"{count:,}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
