"""read -> stages -> write: overlapped, with bounded memory, written in the order read.

Each stage works ahead of the next one in a thread of its own; the last one works in the caller's.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from traceback import clear_frames

from mmrag_batch.errors import InternalError
from mmrag_batch.records import Row
from mmrag_batch.stages import Stage, prefetch

READ_AHEAD = 32
"""Rows that wait in front of each stage."""


def run(
    rows: Iterable[Row],
    stages: Sequence[Stage],
    write: Callable[[Row], None],
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Send every row through the stages and write each of them once, in the order read.

    When `is_stopped` says so, no stage is given another row: those in its hands are finished and
    written, the others are not.

    At most `in_flight(stages)` rows are between reading and writing. What a stage, `rows` or
    `write` raises ends the run and is raised here, when every thread of the run has ended. Raises
    InternalError if a stage drops, doubles or invents a row.
    """
    source = iter(rows)
    limit = in_flight(stages)
    try:
        # Stages run dry and start anew when the limit is reached, which only a row that hundreds of
        # others overtake can do. A closed gate could not wait for that row: the stage that has it
        # may itself be waiting, for a full window of rows that the gate would not let in.
        while not _run_part(source, stages, write, limit, is_stopped):
            pass
    except BaseException as error:
        # The frames keep generators alive that a stage left half way, and those keep threads.
        clear_frames(error.__traceback__)
        raise


def in_flight(stages: Sequence[Stage]) -> int:
    """The most rows that a run holds between reading and writing.

    Once for the rows that stages hold back and those in front of them (with one in the hands of
    the thread on either side), and as many again for those that wait to be written in order.
    """
    return max(1, 2 * sum(stage.window + READ_AHEAD + 2 for stage in stages))


def _run_part(
    source: Iterator[Row],
    stages: Sequence[Stage],
    write: Callable[[Row], None],
    limit: int,
    is_stopped: Callable[[], bool],
) -> bool:
    """Run until `source` ends (True) or `limit` rows are in flight (False); write all rows read."""
    unwritten: deque[int] = deque()  # numbers of rows, in the order read
    inside: set[int] = set()  # numbers of rows that have not come out of the last stage
    finished = False

    def admit() -> Iterator[Row]:
        nonlocal finished
        while len(unwritten) < limit:
            row = next(source, None)
            if row is None:
                finished = True
                return
            inside.add(row.number)
            unwritten.append(row.number)
            yield row

    done: dict[int, Row] = {}
    with closing(_chain(admit(), stages, is_stopped)) as stream:
        for row in stream:
            if row.number not in inside:
                raise InternalError(f"Row {row.number} came out of the stages twice or unread.")
            inside.remove(row.number)
            done[row.number] = row
            while unwritten and unwritten[0] in done:
                write(done.pop(unwritten[0]))
                unwritten.popleft()
    if is_stopped():
        return True
    if unwritten:
        raise InternalError(f"Row {unwritten[0]} went into the stages and never came out.")
    return finished


def _chain(
    rows: Iterator[Row], stages: Sequence[Stage], is_stopped: Callable[[], bool]
) -> Generator[Row, None, None]:
    for stage in stages:
        rows = stage(_until(is_stopped, prefetch(rows, READ_AHEAD)))
    yield from rows


def _until(
    is_stopped: Callable[[], bool], rows: Generator[Row, None, None]
) -> Generator[Row, None, None]:
    with closing(rows):
        for row in rows:
            if is_stopped():
                return
            yield row
