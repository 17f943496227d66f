"""A run of `predict`, from settings to a published output.

What can be checked without a model is checked first, and a run that is complete loads none. The
same command again goes on where this one ended.
"""

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from mmrag_batch.bundle import open_bundle
from mmrag_batch.config import PredictSettings
from mmrag_batch.errors import ExitCode, LockedError
from mmrag_batch.factory import open_stages
from mmrag_batch.io.draft import Draft, Paths
from mmrag_batch.io.journal import Saved, Start
from mmrag_batch.io.lock import describe_process, hold_lock
from mmrag_batch.io.manifest import Manifest, publish
from mmrag_batch.io.output import check_output
from mmrag_batch.run.amend import plant
from mmrag_batch.run.metrics_file import MetricsFile
from mmrag_batch.run.plan import take_up
from mmrag_batch.run.progress import Progress
from mmrag_batch.run.signals import StopSignals
from mmrag_batch.run.versions import find_versions
from mmrag_batch.run.work import answer_rows, is_gaining
from mmrag_batch.scale.shards import find_shard, shard_path
from mmrag_batch.stages import Stage

log = logging.getLogger(__name__)


def predict(settings: PredictSettings) -> ExitCode:
    """Answer every row of the input that has no answer yet; write the output when all have one.

    Returns OK, or PARTIAL where more rows failed than `max_row_errors` allows. Raises the errors
    of `errors.py`; whatever it raises, what is committed is safe.
    """
    settings = _take_shard(settings)
    check_output(settings.output, settings.input)
    drafts: list[tuple[Saved, Draft]] = []

    def leave() -> ExitCode:
        code = stop.exit_code
        for saved, draft in drafts:
            draft.commit()
            code = code if is_gaining(saved, draft) else ExitCode.ABORTED
        metrics.finish(code)
        return code

    stop = StopSignals(grace=settings.grace, max_runtime=settings.max_runtime, leave=leave)
    with MetricsFile(settings.metrics_file, settings.output) as metrics, stop:
        try:
            manifest = _complete(settings, stop, metrics, drafts)
        except LockedError as error:
            metrics.withdraw()
            if settings.if_locked != "skip":
                raise
            log.info("%s", error)
            return ExitCode.OK
        rows = manifest.stop - manifest.first
        metrics.update(manifest.rows, rows)
        if manifest.rows["error"] > (_allowed(settings, rows) or 0):
            metrics.exit_code = ExitCode.PARTIAL
    return metrics.exit_code


def _take_shard(settings: PredictSettings) -> PredictSettings:
    """The settings with the shard that a Slurm array asks for, and with its own output."""
    shard = find_shard(settings.shard, os.environ)
    if shard is None:
        return replace(settings, shard=None)
    output = shard_path(settings.output, shard)
    log.info("Shard %d of 0 to %d: %s.", shard.index, shard.count - 1, output)
    return replace(settings, output=output, shard=f"{shard.index}/{shard.count}")


def _complete(
    settings: PredictSettings,
    stop: StopSignals,
    metrics: MetricsFile,
    drafts: list[tuple[Saved, Draft]],
) -> Manifest:
    """Bring the run to its end, from wherever it is; the manifest of the complete output."""
    paths = Paths(settings.output)
    with hold_lock(paths.lock, wait=settings.if_locked == "wait") as check_lock:
        metrics.begin()
        saved = take_up(settings, paths)
        if isinstance(saved, Manifest):
            log.info("%s is complete; there is nothing to do.", settings.output)
            return saved
        if saved.finish is None:
            plant(paths)
            with Draft(paths, saved, check_lock) as draft:
                drafts.append((saved, draft))
                draft.start(_describe_start(saved))
                _answer(settings, saved, draft, stop, metrics)
                drafts.clear()
        manifest = publish(paths)
    log.info("%s", _summary(settings, manifest))
    return manifest


def _answer(
    settings: PredictSettings, saved: Saved, draft: Draft, stop: StopSignals, metrics: MetricsFile
) -> None:
    total = saved.begin.stop - saved.begin.first
    progress = Progress(total, quiet=settings.quiet, done=sum(draft.rows.values()))

    def report(rows: Mapping[str, int]) -> None:
        progress.update(rows)
        metrics.update(rows, total)

    @contextmanager
    def stages() -> Iterator[list[Stage]]:
        with _load(settings) as loaded, progress:
            yield loaded

    allowed = _allowed(settings, total)
    answer_rows(settings.input, saved, draft, stages, stop, allowed=allowed, report=report)


@contextmanager
def _load(settings: PredictSettings) -> Iterator[list[Stage]]:
    bundle = open_bundle(settings.bundle)
    if bundle.manifest.notice:
        log.info("%s", bundle.manifest.notice)
    log.info("Loading the models of %s.", settings.bundle)
    with open_stages(settings, bundle) as stages:
        yield stages


def _describe_start(saved: Saved) -> Start:
    """This start; warns where a version is not that of the last one."""
    start = Start(saved.commit.row, time.time(), describe_process(), find_versions())
    if saved.starts:
        log.info("Going on at row %s.", f"{saved.commit.row:,}")
        before = saved.starts[-1].versions
        for name in sorted(before.keys() | start.versions.keys()):
            was, now = before.get(name), start.versions.get(name)
            if was != now:
                log.warning("%s was %s at the last start, and is %s: noted.", name, was, now)
    return start


def _allowed(settings: PredictSettings, rows: int) -> float | None:
    """How many rows may fail; None if the run is not to end early."""
    given = settings.max_row_errors
    if given is None:
        return None
    return float(given) * rows if "." in given else int(given)


def _summary(settings: PredictSettings, manifest: Manifest) -> str:
    counts = ", ".join(f"{rows:,} {status}" for status, rows in manifest.rows.items())
    rows = sum(manifest.rows.values())
    line = f"{settings.output}: {rows:,} rows in {manifest.seconds:.1f} s ({counts})."
    if "label" in manifest.columns:
        line += f" Next: mmrag-batch evaluate {shlex.quote(str(settings.output))}"
    return line
