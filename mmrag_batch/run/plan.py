"""What a command has to do: begin a run, go on with one, or nothing."""

import logging

from mmrag_batch.bundle import read_manifest, sha256
from mmrag_batch.config import PredictSettings
from mmrag_batch.errors import ConfigError
from mmrag_batch.io.draft import Paths
from mmrag_batch.io.journal import Begin, Saved
from mmrag_batch.io.manifest import Manifest
from mmrag_batch.io.output import RowFormat
from mmrag_batch.io.table import read_header, scan
from mmrag_batch.io.text import check_file
from mmrag_batch.run.amend import begin_retry, check_extends, extend_complete, extend_saved
from mmrag_batch.run.fingerprint import differences, take_fingerprint
from mmrag_batch.run.resume import begin, check_output_unchanged, check_same, find, move_aside
from mmrag_batch.scale.shards import find_shard, shard_rows

log = logging.getLogger(__name__)


def take_up(settings: PredictSettings, paths: Paths) -> Saved | Manifest:
    """The run to go on with, which may be at its beginning, or the manifest of a complete one.

    Raises InputError, MissingError, OutputError, and ConfigError for what is not as it was.
    """
    if settings.extend and settings.shard:
        raise ConfigError("--extend is not for shards: with more rows, other rows are theirs.")
    if settings.fresh and (folder := move_aside(paths)) is not None:
        log.info("What was there of %s is in %s.", paths.output, folder)
    known = find(paths, repair=settings.repair, overwrite=settings.overwrite)
    if known is None:
        columns, rows = _survey(settings)  # the input's faults before those of anything else
        return begin(paths, _describe(settings, _fingerprint(settings), columns, rows))
    check_file(settings.input)
    fingerprint = _fingerprint(settings)
    if isinstance(known, Saved):
        return _go_on(settings, paths, known, fingerprint)
    return _go_on_from_complete(settings, paths, known, fingerprint)


def _go_on(
    settings: PredictSettings, paths: Paths, saved: Saved, fingerprint: dict[str, object]
) -> Saved:
    if settings.extend and set(differences(saved.begin.fingerprint, fingerprint)) == {"input"}:
        longer = _describe(settings, fingerprint, *_survey(settings))
        check_extends(settings.input, saved.begin, longer)
        return extend_saved(paths, saved, longer)
    check_same(paths, saved.begin.fingerprint, fingerprint)
    return saved


def _go_on_from_complete(
    settings: PredictSettings, paths: Paths, manifest: Manifest, fingerprint: dict[str, object]
) -> Saved | Manifest:
    changed = differences(manifest.fingerprint, fingerprint)
    if settings.extend and set(changed) == {"input"}:
        check_output_unchanged(paths, manifest)
        longer = _describe(settings, fingerprint, *_survey(settings))
        check_extends(settings.input, manifest, longer)
        return extend_complete(paths, manifest, longer)
    if settings.overwrite and (changed or sha256(paths.output) != manifest.sha256):
        return begin(paths, _describe(settings, fingerprint, *_survey(settings)))
    check_same(paths, manifest.fingerprint, fingerprint)
    check_output_unchanged(paths, manifest)
    if settings.retry_errors and manifest.rows["error"]:
        run = _describe(settings, fingerprint, manifest.columns, manifest.input_rows)
        return begin_retry(paths, manifest, run)
    return manifest


def _survey(settings: PredictSettings) -> tuple[tuple[str, ...], int]:
    """Columns and number of rows of the input, all of it read once."""
    columns = read_header(settings.input)
    RowFormat(settings.output, columns)
    return columns, scan(settings.input)


def _describe(
    settings: PredictSettings,
    fingerprint: dict[str, object],
    columns: tuple[str, ...],
    input_rows: int,
) -> Begin:
    limited = range(input_rows)[: settings.limit]
    rows = shard_rows(len(limited), find_shard(settings.shard, {}))
    size = settings.input.stat().st_size
    return Begin(fingerprint, columns, rows.start, rows.stop, input_rows, size)


def _fingerprint(settings: PredictSettings) -> dict[str, object]:
    return take_fingerprint(
        sha256(settings.input),
        read_manifest(settings.bundle),
        engine=settings.engine,
        limit=settings.limit,
        top_k=settings.top_k,
        max_images=settings.max_images,
        max_new_tokens=settings.max_new_tokens,
    )
