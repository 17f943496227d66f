"""read -> stages -> keep: overlapped, with bounded memory, in whatever order rows come out.

Each stage but the last works ahead of the next one in a thread of its own.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from traceback import clear_frames

from mmrag_batch.errors import InternalError
from mmrag_batch.records import Row
from mmrag_batch.stages import OpenStage, Stage, open_stages, prefetch

READ_AHEAD = 32
"""Rows that wait in front of each stage."""


def run(
    rows: Iterable[Row],
    stages: Sequence[OpenStage],
    keep: Callable[[Row], None],
    *,
    is_stopped: Callable[[], bool],
) -> None:
    """The executor: opens the stages in this process, one after the other, and runs them."""
    with open_stages(stages) as opened:
        run_stages(rows, opened, keep, is_stopped=is_stopped)


def run_stages(
    rows: Iterable[Row],
    stages: Sequence[Stage],
    keep: Callable[[Row], None],
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Send every row through the stages and keep each of them once, as it comes out.

    When `is_stopped` says so, no stage is given another row: those in its hands are finished and
    kept, the others are not.

    At most `rows_in_flight(stages)` rows are between reading and keeping. What a stage, `rows` or
    `keep` raises ends the run and is raised here, when every thread of the run has ended. Raises
    InternalError if a stage drops, doubles or invents a row.
    """
    inside: set[int] = set()  # numbers of rows that have not come out of the last stage

    def admit() -> Iterator[Row]:
        for row in rows:
            inside.add(row.number)
            yield row

    try:
        with closing(_chain(admit(), stages, is_stopped)) as stream:
            for row in stream:
                if row.number not in inside:
                    raise InternalError(f"Row {row.number} came out of the stages twice or unread.")
                inside.remove(row.number)
                keep(row)
        if inside and not is_stopped():
            raise InternalError(f"Row {min(inside)} went into the stages and never came out.")
    except BaseException as error:
        # The frames keep generators alive that a stage left half way, and those keep threads.
        clear_frames(error.__traceback__)
        raise


def rows_in_flight(stages: Sequence[Stage]) -> int:
    """The most rows that a run holds: those that stages hold back, and those in front of them (with
    one in the hands of the thread on either side)."""
    return max(1, sum(stage.window + READ_AHEAD + 2 for stage in stages))


def _chain(
    rows: Iterator[Row], stages: Sequence[Stage], is_stopped: Callable[[], bool]
) -> Generator[Row, None, None]:
    for place, stage in enumerate(stages):  # reading takes too little to be worth a thread
        rows = stage(_until(is_stopped, prefetch(rows, READ_AHEAD) if place else rows))
    yield from rows


def _until(is_stopped: Callable[[], bool], rows: Iterator[Row]) -> Generator[Row, None, None]:
    try:
        for row in rows:
            if is_stopped():
                return
            yield row
    finally:
        if isinstance(rows, Generator):
            rows.close()
