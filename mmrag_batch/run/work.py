"""The rows of a run that have no answer yet: through the stages, to the draft of its output."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from mmrag_batch.errors import (
    AbortedError,
    InputError,
    LockedError,
    OutputError,
    StoppedError,
    StorageError,
)
from mmrag_batch.io.draft import Draft
from mmrag_batch.io.journal import Saved
from mmrag_batch.io.output import RowFormat
from mmrag_batch.io.table import read_rows
from mmrag_batch.pipeline import run
from mmrag_batch.records import Position, Row
from mmrag_batch.run.amend import Retry, find_retry
from mmrag_batch.run.signals import NO_GAIN, StopSignals
from mmrag_batch.stages import Stage

IDLE_STARTS = 3
"""A run that was stopped so often before it committed a row is not worth another start."""
OURS = (AbortedError, LockedError, OutputError, StorageError)
"""What ends a run even while it is being stopped: no engine raises these."""
log = logging.getLogger(__name__)


def answer_rows(
    table: Path,
    saved: Saved,
    draft: Draft,
    open_stages: Callable[[], AbstractContextManager[list[Stage]]],
    stop: StopSignals,
    *,
    allowed: float | None,
    report: Callable[[Mapping[str, int]], None],
) -> None:
    """Add every row that is missing to `draft`, and commit all of them.

    `report` is told of each row. Raises AbortedError when more than `allowed` rows fail,
    StoppedError if it was stopped before the last row; both after a commit.
    """
    end = saved.begin.stop
    row_format = RowFormat(draft.paths.output, saved.begin.columns)
    retry = find_retry(draft.paths, saved.commit)
    if retry is None and not saved.commit.size:
        draft.copy(row_format.header)

    def write(row: Row) -> None:
        before = () if retry is None else retry.before(row.number)
        draft.add(row, row_format.row(row), before=before)
        report(draft.rows)
        failed = draft.rows["error"] - saved.commit.error
        if allowed is not None and failed > allowed:
            draft.commit()
            raise AbortedError(
                f"{failed:,} rows failed, more than --max-row-errors allows; the last one, line "
                f"{row.line}: {row.error and row.error.message}. Mend the cause, then run the same "
                "command again; `--retry-errors` asks the failed rows again in the end."
            )

    if saved.commit.row < end:
        with open_stages() as stages:
            stop.working = True
            rows = _missing(table, saved, retry)
            try:
                run(rows, stages, write, is_stopped=lambda: stop.cause is not None)
            except OURS:
                raise
            except Exception as error:
                # An engine may be stopped by the same signal, before its last rows are answered.
                if stop.cause is None:
                    raise
                log.info("Rows in work were given up: %s", error)
    _settle(saved, draft, retry, stop)


def is_gaining(saved: Saved, draft: Draft) -> bool:
    """Whether a run that is stopped now is worth another start."""
    return draft.committed.row > saved.commit.row or saved.idle + 1 < IDLE_STARTS


def _missing(table: Path, saved: Saved, retry: Retry | None) -> Iterator[Row]:
    """The rows without an answer, read from where the last commit ended."""
    done = saved.commit
    numbers = range(done.row, saved.begin.stop) if retry is None else retry.rows
    if not done.offset:
        return read_rows(table, numbers)
    return read_rows(table, numbers, first=done.row, start=Position(done.offset, done.line))


def _settle(saved: Saved, draft: Draft, retry: Retry | None, stop: StopSignals) -> None:
    """Commit what is there; raise unless that is every row."""
    end = saved.begin.stop
    missing = end - draft.row if retry is None else len(retry.rows)
    if missing == 0:
        draft.complete(() if retry is None or draft.row == end else retry.rest())
        return
    draft.commit()
    if stop.cause is None:
        raise InputError(
            f"The input ended {missing:,} rows early: it was changed while it was read. Put it "
            "back as it was, or add `--fresh`."
        )
    if not is_gaining(saved, draft):
        raise AbortedError(f"Stopped by {stop.cause}. {NO_GAIN}")
    raise StoppedError(
        f"Stopped by {stop.cause}: {missing:,} rows are left. Run the same command again to go on.",
        stop.exit_code,
    )
