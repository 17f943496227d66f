"""A run of `predict`, from settings to a published output.

    survey      read the table once: which rows have no answer?
    work        ask them; where there are none, no model is loaded
    publish     write the output from table and store

What can be checked without a model is checked first. The same command again goes on where this one
ended, whatever has become of the table since.
"""

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from mmrag_batch.errors import AbortedError, ConfigError, ExitCode, LockedError
from mmrag_batch.execute.executor import Executor, open_executor
from mmrag_batch.factory import find_stages, load_bundle, open_images
from mmrag_batch.records import Status
from mmrag_batch.run.adopt import adopt
from mmrag_batch.run.answers import Start
from mmrag_batch.run.copies import bring, check_table
from mmrag_batch.run.files import Paths
from mmrag_batch.run.job import Job, note_job
from mmrag_batch.run.keys import found_key_maker, key_maker
from mmrag_batch.run.lock import Lock, describe_process, hold_lock
from mmrag_batch.run.manifest import Manifest, find_published
from mmrag_batch.run.mending import mending
from mmrag_batch.run.metrics_file import MetricsFile
from mmrag_batch.run.plan import (
    BEGUN_BY,
    begin_anew,
    check_beside,
    check_documents,
    check_same,
    find_acceptable,
    find_others,
    is_done,
    make_job,
    statuses_to_ask,
    was_begun_anew,
)
from mmrag_batch.run.progress import RowProgress
from mmrag_batch.run.publish import check_failures, publish
from mmrag_batch.run.recall import recall
from mmrag_batch.run.shards import Shard, claiming, find_shard, open_folder, shard_paths
from mmrag_batch.run.signals import StopSignals
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.summary import Ending, Summary
from mmrag_batch.run.survey import Survey, take_survey
from mmrag_batch.run.upload import check_upload, upload_output
from mmrag_batch.run.versions import find_versions, tell_versions
from mmrag_batch.run.work import Work, ask_missing, is_gaining, too_many
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import OpenStage
from mmrag_batch.table.formats import describe
from mmrag_batch.table.names import tell_columns
from mmrag_batch.table.output import RowFormat, check_output
from mmrag_batch.table.rows import read_header

log = logging.getLogger(__name__)


def predict(settings: PredictSettings, tell: Callable[[Summary], None] = lambda _: None) -> None:
    """Answer every row of the input that has no answer yet; write the output when all have one.
    `tell` is told how it ended, once all have.

    Raises the errors of `errors.py`, of which PartialError says that all is done but that rows have
    no answer; whatever it raises, what is committed is safe.
    """
    shard = find_shard(settings.shard, os.environ, settings.output)
    ending = Ending(settings.output, shard, tell)
    executor = open_executor(settings)
    check_output(settings.output, settings.input)
    paths = _find_paths(settings, shard)
    check_table(settings)
    at_work: list[tuple[AnswerStore, Start]] = []

    def leave() -> ExitCode:
        code = stop.exit_code
        for store, start in at_work:
            store.commit()
            code = code if is_gaining(store, start) else ExitCode.ABORTED
        metrics.finish(code)
        return code

    stop = StopSignals(grace=settings.grace, max_runtime=settings.max_runtime, leave=leave)
    with MetricsFile(settings.metrics_file, settings.output) as metrics, stop:
        try:
            with _hold(settings, paths) as lock:
                metrics.begin()
                here = bring(settings, paths)
                job = make_job(here, settings)
                about = (executor, lock, stop, metrics, at_work, ending)
                run = _Run(here, job, paths, shard, *about)
                mending(paths.store, run.complete)
        except LockedError as error:
            metrics.withdraw()
            if settings.if_locked != "skip":
                raise
            log.info("%s", error)


def _find_paths(settings: PredictSettings, shard: Shard | None) -> Paths:
    if shard is None:
        return Paths.of(settings.output, settings.store)
    if settings.store is not None:
        raise ConfigError("--store is not for shards: each of them has a store of its own.")
    open_folder(settings.output)
    return shard_paths(settings.output, shard)


@contextmanager
def _hold(settings: PredictSettings, paths: Paths) -> Iterator[Lock]:
    """The lock of an output, and that of a store which others use as well."""
    wait = settings.if_locked == "wait"
    with ExitStack() as stack:
        lock = stack.enter_context(hold_lock(paths.lock, wait=wait))
        if settings.store is not None:
            shared = paths.store.with_name(paths.store.name + ".lock")
            stack.enter_context(hold_lock(shared, wait=wait))
        yield lock


@dataclass(frozen=True, slots=True)
class _Run:
    """What the steps of a run share."""

    settings: PredictSettings
    job: Job
    paths: Paths
    shard: Shard | None
    executor: Executor
    lock: Lock
    stop: StopSignals
    metrics: MetricsFile
    at_work: list[tuple[AnswerStore, Start]]
    ending: Ending

    def complete(self) -> None:
        """Bring the run to its end, from wherever it is."""
        settings, paths = self.settings, self.paths
        self.at_work.clear()
        if settings.fresh and not was_begun_anew(paths):
            begin_anew(settings, paths, self.shard, self.lock)
        with AnswerStore(paths.store, self.lock.check) as store:
            if settings.fresh:
                store.note(BEGUN_BY, os.environ.get("SLURM_JOB_ID"))
            manifest = self._find_manifest(store)
            if manifest is not None and is_done(settings, self.job, manifest, store):
                log.info("%s is complete; there is nothing to do.", settings.output)
                upload_output(paths, settings.upload, overwrite=settings.overwrite)
                self.ending.tell(manifest.rows, manifest.input["columns"], self.job.names)
                self._end(manifest.rows, manifest)
                return
            columns = read_header(settings.input, self.job.names)
            RowFormat(settings.output, columns)
            log.info("%s: %s", settings.input, describe(settings.input, columns, self.job.names))
            if (temperature := self.job.presentation.temperature) != 1:
                log.info("Confidences are calibrated: temperature %.4g.", temperature)
            for warning in tell_columns(columns, self.job.names):
                log.warning("%s: %s", settings.input, warning)
            check_same(
                settings.output, store, None if settings.fresh else manifest, self.job.settings
            )
            if self.shard is not None and not settings.fresh:
                check_beside(settings.output, self.job.settings)
            store.check()
            check_upload(settings.output, settings.upload, overwrite=settings.overwrite)
            with closing(self._survey(store)) as survey:
                for note in survey.notes:
                    log.warning("%s: %s", settings.input, note)
                asked, rows = self._ask(store, survey)
                if self.shard is None:
                    manifest = publish(
                        paths, self.job, survey, store, asked=asked, overwrite=settings.overwrite
                    )
                    rows = manifest.rows
                    upload_output(paths, settings.upload, overwrite=settings.overwrite)
            kept = sum(rows.values()) - survey.unreadable - asked
            self.ending.tell(rows, columns, self.job.names, asked=asked, kept=kept)
            self._end(rows, manifest)

    def _find_manifest(self, store: AnswerStore) -> Manifest | None:
        if self.shard is not None:
            return None
        return find_published(self.paths, store, overwrite=self.settings.overwrite)

    def _survey(self, store: AnswerStore) -> Survey:
        settings = self.settings
        return take_survey(
            settings.input,
            store,
            key_maker(self.job.settings),
            find_acceptable(settings, open_images(settings)),
            names=self.job.names,
            shard=self.shard,
            limit=settings.limit,
        )

    def _ask(self, store: AnswerStore, survey: Survey) -> tuple[int, Mapping[Status, int]]:
        """Ask what is missing; how many rows that were, and all that are answered, by status."""
        settings, rows = self.settings, survey.chosen
        allowed = self._allowed(len(rows))
        if allowed is not None and survey.unreadable > allowed:
            raise AbortedError(too_many(survey.unreadable, survey.complaint))
        with claiming(settings.output):
            self.lock.describe(table=survey.sha256, rows=(rows.start, rows.stop))
            others, busy = find_others(settings.output, self.paths, survey.sha256)
        tasks = None if self.shard is None else (self.shard.first, self.shard.step)
        note_job(store, self.job, settings.output, tasks)
        if survey.missing and not settings.fresh and not settings.verify_inputs:
            adopt(store, others, survey, statuses_to_ask(settings))
            recall(settings, self.job, store, survey, self.executor, self.stop)
        missing = survey.missing
        kept = len(rows) - missing - survey.unreadable
        log.info(
            "%s: %s rows, %s of them answered before, %s to ask.",
            settings.input,
            f"{len(rows):,}",
            f"{kept:,}",
            f"{missing:,}",
        )
        if not missing:
            return 0, survey.by_status()
        check_documents(settings, survey)
        start = Start(
            first=rows.start,
            stop=rows.stop,
            kept=kept,
            rows=survey.by_status(),
            time=time.time(),
            process=describe_process(),
            versions=find_versions(),
        )
        tell_versions(store.starts(), start)
        store.begin(start)
        self.at_work.append((store, start))
        keys = self.job.settings
        work = Work(survey, store, start, key_maker(keys), busy, found_key_maker(keys))
        progress = RowProgress(len(rows), quiet=settings.quiet, done=len(rows) - missing)

        def report(counts: Mapping[Status, int]) -> None:
            progress.update(counts)
            self.metrics.update(counts, len(rows), start.usage)

        stages = _find_stages(settings)
        with progress:
            what = (work, store, start, stages, self.stop, self.executor)
            ask_missing(*what, allowed=allowed, begin=progress.begin, report=report)
        self.at_work.clear()
        if work.left and self.shard is None:
            raise LockedError(
                f"{work.left:,} rows are being answered by other runs (`mmrag-batch status "
                f"{shlex.quote(str(settings.output))}` shows them). Run again when they are done."
            )
        if work.left:
            log.info("%s rows are left to the runs that are at them.", f"{work.left:,}")
        self.ending.start = start
        return missing - work.left, start.rows

    def _allowed(self, rows: int) -> float | None:
        """How many rows may fail; None if the run is not to end early."""
        given = self.settings.max_row_errors
        if given is None:
            return None
        return float(given) * rows if "." in given else int(given)

    def _end(self, rows: Mapping[Status, int], manifest: Manifest | None) -> None:
        """Raise PartialError if more rows have no answer than may."""
        total = sum(rows.values())
        self.metrics.update(rows, total)
        store, shard = self.settings.store, self.shard
        more = [] if store is None else ["--store", str(store)]
        more += [] if shard is None else ["--shard", f"{shard.index}/{shard.count}"]
        command = self.job.command(self.settings.output, *more)
        check_failures(rows, manifest, allowed=self._allowed(total) or 0, command=command)


def _find_stages(settings: PredictSettings) -> list[OpenStage]:
    bundle = load_bundle(settings)
    if bundle.manifest.notice:
        log.info("%s", bundle.manifest.notice)
    log.info("Loading the models of %s.", settings.bundle)
    return find_stages(settings, bundle)
