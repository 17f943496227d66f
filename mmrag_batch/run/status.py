"""What `mmrag-batch status` says of an output: how far, how fast, what failed."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from mmrag_batch.errors import MissingError
from mmrag_batch.io.draft import Paths
from mmrag_batch.io.journal import Failure, Saved, read_failures, read_journal
from mmrag_batch.io.lock import find_holder
from mmrag_batch.io.manifest import read_manifest
from mmrag_batch.run.amend import read_failed
from mmrag_batch.run.resume import check_output_unchanged

FEW = 5
"""Failed rows that are shown."""


def describe(output: Path) -> Iterator[str]:
    """Lines for people. Raises MissingError if there is no run, ConfigError if what it wrote was
    changed since, InternalError for a damaged journal."""
    paths = Paths(output)
    saved = read_journal(paths.journal)
    manifest = read_manifest(paths.manifest) if output.exists() else None
    if saved is not None:
        yield from _unfinished(paths, saved)
    elif manifest is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.finished))
        rate = _rate(sum(manifest.rows.values()), manifest.seconds)
        yield f"{output}: complete since {when}: {_counts(manifest.rows)}{rate}."
        yield from _failed(iter(read_failed(paths.errors)), paths.errors)
        check_output_unchanged(paths, manifest)
    else:
        raise MissingError(
            f"{output} is no output of a run, nor is one on its way. Start one with "
            "`mmrag-batch predict`."
        )


def _unfinished(paths: Paths, saved: Saved) -> Iterator[str]:
    commit, begin = saved.commit, saved.begin
    rows = {"ok": commit.ok, "degraded": commit.degraded, "error": commit.error}
    done, total = sum(rows.values()), begin.stop - begin.first
    rate = _rate(commit.row - begin.first, commit.seconds)
    yield f"{paths.output}: {done:,} of {total:,} rows are committed: {_counts(rows)}{rate}."
    holder = find_holder(paths.lock)
    if holder is None:
        yield "Nobody works on it. Run the same command again to go on."
    else:
        yield f"At work: {holder}."
    yield from _failed(read_failures(paths.journal), paths.journal)


def _counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in rows.items())


def _rate(rows: int, seconds: float) -> str:
    return f", {rows / seconds:,.1f} rows/s" if rows and seconds > 0 else ""


def _failed(failures: Iterator[Failure], source: Path) -> Iterator[str]:
    for failure in islice(failures, FEW):
        yield f"  line {failure.line}, row {failure.id!r}: {failure.code}: {failure.message}"
    if next(failures, None) is not None:
        yield f"  ... and more, in {source}"
