"""Joining the stores of an output: what they have answered of its table is published, and where
answers are missing, they are listed; or those that are there are written aside, at any time."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from mmrag_batch.errors import AbortedError, MissingError, OutputError
from mmrag_batch.records import Status
from mmrag_batch.run import files
from mmrag_batch.run.adopt import adopt
from mmrag_batch.run.files import Paths
from mmrag_batch.run.job import Job, find_job, note_job, survey_all
from mmrag_batch.run.lock import Lock, hold_lock, is_held
from mmrag_batch.run.manifest import Manifest, find_published
from mmrag_batch.run.mending import mending
from mmrag_batch.run.plan import read_options
from mmrag_batch.run.publish import Tally, check_failures, publish, write_answers
from mmrag_batch.run.shards import Shard, find_shards, shard_rows
from mmrag_batch.run.signals import StopSignals
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.summary import Ending, Summary
from mmrag_batch.run.survey import MISSING, Survey
from mmrag_batch.run.upload import upload_output
from mmrag_batch.table.output import RowFormat, check_output
from mmrag_batch.table.rows import read_header, read_records
from mmrag_batch.table.text import check_file

log = logging.getLogger(__name__)
GRACE = 30.0
"""Seconds to finish in after a signal; a merge that takes longer leaves, and can be run again."""
FEW = 5
"""Gaps that are listed."""


def merge(
    output: Path,
    table: Path | None = None,
    tell: Callable[[Summary], None] = lambda _: None,
    *,
    overwrite: bool = False,
) -> None:
    """Publish an output from its table and the stores of its shards, whatever their number and age.
    `tell` is told how it ended.

    `table` is by default the one that the shards answered. Raises AbortedError that lists the rows
    which nobody has answered, MissingError if there are no shards, ConfigError for shards of
    several tables or settings, PartialError if rows failed, and what `publish` raises.
    """
    ending = Ending(output, None, tell)
    shards = [paths.store for _, paths in find_shards(output)]
    if not shards:
        raise MissingError(
            f"There are no shards of {output}. Write them with `mmrag-batch predict INPUT {output} "
            "--shard 0/4` and so on."
        )
    paths = Paths.of(output)
    job = find_job(output, [*shards, paths.store], table)
    check_output(output, job.table)
    check_file(job.table)
    stop = StopSignals(grace=GRACE, max_runtime=None, leave=lambda: stop.exit_code)
    with stop, hold_lock(paths.lock, wait=False) as lock:
        stop.working = True
        manifest = mending(paths.store, lambda: _merge(paths, job, lock, overwrite))
    upload_output(paths, read_options(job.options).get("upload"), overwrite=overwrite)
    log.info("%d shards of %s are joined.", len(shards), output)
    ending.tell(manifest.rows, manifest.input["columns"], job.names, kept=manifest.kept)
    check_failures(manifest.rows, manifest, allowed=0, command=job.command(output))


def _merge(paths: Paths, job: Job, lock: Lock, overwrite: bool) -> Manifest:
    with AnswerStore(paths.store, lock.check) as store:
        find_published(paths, store, overwrite=overwrite)
        RowFormat(paths.output, read_header(job.table, job.names))
        store.check()
        with closing(survey_all(job, store)) as survey:
            shards = [(shard, its) for shard, its in find_shards(paths.output)]
            live = [shard for shard, its in shards if is_held(its.lock)]
            idle = [its.store for shard, its in shards if shard not in live]
            adopt(store, idle, survey, frozenset())
            if survey.missing:
                begun = [shard for shard, _ in shards]
                raise AbortedError(_describe_gaps(paths.output, job, survey, begun, live))
            note_job(store, job, paths.output, None)
            return publish(paths, job, survey, store, asked=0, overwrite=overwrite)


def _describe_gaps(
    output: Path, job: Job, survey: Survey, shards: Iterable[Shard], live: Sequence[Shard]
) -> str:
    """Which rows have no answer, and which shards would ask those that nobody is at."""
    rows = len(survey.chosen)
    missing = {mark.number for mark in survey if mark.status == MISSING}
    lines = [
        record.line
        for number, record in enumerate(read_records(survey.table, survey.names))
        if number in missing
    ]
    what = f"{output} is not finished yet: {len(missing):,} of {rows:,} rows have no answer"
    what += f" (lines {_runs(lines)})."
    if live:
        missing.difference_update(*(shard_rows(rows, shard) for shard in live))
        what += f" Still at work: shard {_names(live)}."
    if not missing:
        return f"{what} Merge again when it is done."
    plans = [
        [
            shard
            for shard in (Shard(index, count) for index in range(count))
            if not missing.isdisjoint(shard_rows(rows, shard))
        ]
        for count in {shard.count for shard in shards}
    ]
    again = min(plans, key=len)
    command = job.command(output, "--shard", _names(again[:1]))
    return f"{what} Run shard {_names(again)} again, as in `{command}`, then merge again."


def _names(shards: Iterable[Shard]) -> str:
    return ", ".join(f"{shard.index}/{shard.count}" for shard in shards)


def _runs(numbers: Sequence[int]) -> str:
    """Numbers in words: `3, 5 to 9 and more`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in runs[:FEW]]
    return ", ".join(shown) + (" and more" if len(runs) > FEW else "")


def write_so_far(paths: Paths, target: Path, *, overwrite: bool = False) -> Mapping[Status, int]:
    """Write the rows of an output that are answered so far to `target`; how many, by status.

    The runs that are at them go on. Raises MissingError if there are none, OutputError for a target
    that is there, unless it is to be replaced.
    """
    output = paths.output
    stores = [its.store for its in (paths, *(its for _, its in find_shards(output)))]
    job = find_job(output, stores)
    check_output(target, job.table)
    if target.resolve() == output.resolve():
        raise OutputError(f"{target} is what the run writes in the end. Choose another file.")
    check_file(job.table)
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} is there. Choose another file, or add `--overwrite`.")
    RowFormat(target, read_header(job.table, job.names))
    folder_of_its_own = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    with folder_of_its_own as folder, files.storing(target):
        rows, _ = gather(job, stores, Path(folder, "rows"), target.name)
        files.replace(Path(folder, "rows"), target)
    return rows


def gather(
    job: Job, stores: Sequence[Path], target: Path, name: str
) -> tuple[Mapping[Status, int], list[int]]:
    """Write what stores have answered of a job to a new file `target`, as an output called `name`
    has it: how many rows, by status, and their numbers in the table. A store is made beside it."""
    tally = Tally()
    with (
        AnswerStore(target.with_name("store"), lambda: None) as store,
        closing(survey_all(job, store)) as survey,
    ):
        adopt(store, stores, survey, frozenset())
        write_answers(target, name, survey, store, tally, job.presentation)
        numbers = [mark.number for mark in survey if mark.status != MISSING]
    return tally.rows, numbers
