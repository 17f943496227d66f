"""Joining the shards of a run to one output, once it is proven that they are all of it.

The joined rows are put in place as those of a run that has committed its last row, and published as
any run is: a merge that dies can be run again, and an output is whole or not there.
"""

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from mmrag_batch.errors import AbortedError, ConfigError, InternalError, MissingError
from mmrag_batch.io import disk
from mmrag_batch.io.draft import Paths
from mmrag_batch.io.journal import Begin, Commit, Failure
from mmrag_batch.io.lock import hold_lock
from mmrag_batch.io.manifest import CHUNK, Manifest, publish, read_manifest
from mmrag_batch.io.output import RowFormat
from mmrag_batch.run.amend import open_output, plant, read_failed
from mmrag_batch.run.resume import ANEW, begin, check_output_unchanged, check_same, find
from mmrag_batch.run.signals import StopSignals
from mmrag_batch.scale.shards import Shard, find_shards, shard_path

log = logging.getLogger(__name__)
GRACE = 30.0
"""Seconds to finish in after a signal; a merge that takes longer leaves, and can be run again."""


class Part(NamedTuple):
    """A finished shard: its files and what its manifest says."""

    paths: Paths
    manifest: Manifest


def merge(output: Path, *, overwrite: bool = False) -> Manifest:
    """Write the shards of `output` to it, in order; does nothing if that is done.

    Raises AbortedError that lists the shards that are not finished, MissingError if there are none,
    ConfigError for shards of several runs or ones that were edited, InternalError for rows that no
    shard or two of them have, and LockedError, OutputError and StorageError as a run does.
    """
    parts = find_parts(output)
    run = check_one_run(parts)
    paths = Paths(output)
    stop = StopSignals(grace=GRACE, max_runtime=None, leave=lambda: stop.exit_code)
    with stop, hold_lock(paths.lock, wait=False):
        stop.working = True
        there = find(paths, repair=False, overwrite=overwrite)
        if isinstance(there, Manifest) and not overwrite:
            _check_merged(paths, there, parts, run)
            return there
        if there is None or isinstance(there, Manifest):
            _join(paths, parts, run)
        elif there.commit.row != run.stop or there.begin != run:
            raise ConfigError(f"{output} has an unfinished run of its own. {ANEW}")
        plant(paths)
        manifest = publish(paths)
    log.info("%s: %s rows of %d shards.", output, f"{run.stop:,}", len(parts))
    return manifest


def find_parts(output: Path) -> list[Part]:
    """The finished shards of an output, in order, of the one number of shards that is complete.

    Raises MissingError if no shard was begun, AbortedError if some are not finished.
    """
    unfinished = []
    for count in sorted(find_shards(output)):
        shards = [Paths(shard_path(output, Shard(index, count))) for index in range(count)]
        manifests = [read_manifest(paths.manifest) for paths in shards]
        if all(manifests):
            return [Part(*part) for part in zip(shards, cast(list[Manifest], manifests))]
        unfinished += [f"{i}/{count}" for i, manifest in enumerate(manifests) if manifest is None]
    if not unfinished:
        raise MissingError(
            f"There are no shards of {output}. Write them with `mmrag-batch predict INPUT {output} "
            "--shard 0/4` and so on."
        )
    raise AbortedError(
        f"{output}: not finished yet: shard {', '.join(unfinished)}. Run each again with --shard, "
        "then merge again."
    )


def check_one_run(parts: Sequence[Part]) -> Begin:
    """The run that the shards are parts of.

    Raises ConfigError unless they are of one run and as they were written, InternalError unless
    each row of the input is in exactly one of them.
    """
    first = parts[0].manifest
    row = 0
    for paths, manifest in parts:
        check_same(paths, first.fingerprint, manifest.fingerprint)
        check_output_unchanged(paths, manifest)
        if manifest.first != row:
            problem = "no shard has" if manifest.first > row else "two shards have"
            low, high = sorted((manifest.first, row))
            raise InternalError(f"{paths.output}: {problem} rows {low} to {high - 1}. {ANEW}")
        row = manifest.stop
    limit = cast(int | None, first.fingerprint["limit"])
    stop = len(range(first.input_rows)[:limit])
    if row != stop:
        raise InternalError(f"{parts[-1].paths.output}: no shard has rows {row} to {stop - 1}.")
    return Begin(
        fingerprint=first.fingerprint,
        columns=first.columns,
        first=0,
        stop=stop,
        input_rows=first.input_rows,
        input_bytes=first.input_bytes,
    )


def _check_merged(paths: Paths, there: Manifest, parts: Sequence[Part], run: Begin) -> None:
    """Raise ConfigError unless a complete output is what its shards are now."""
    check_same(paths, there.fingerprint, run.fingerprint)
    check_output_unchanged(paths, there)
    if there.rows != _rows_by_status(parts):
        raise ConfigError(
            f"{paths.output} is not what its shards are now: rows of it, or of them, were answered "
            "again. Add `--overwrite` to take those of the shards."
        )


def _rows_by_status(parts: Sequence[Part]) -> dict[str, int]:
    statuses = parts[0].manifest.rows
    return {name: sum(part.manifest.rows[name] for part in parts) for name in statuses}


def _join(paths: Paths, parts: Sequence[Part], run: Begin) -> None:
    """Begin a run that has the rows of all shards in place."""
    header = RowFormat(paths.output, run.columns).header
    failures: list[Failure] = []
    paths.state.mkdir(exist_ok=True)
    crc, size = zlib.crc32(header), len(header)
    with disk.storing(paths.output, size), (paths.state / "seed").open("wb") as seed:
        seed.write(header)
        for part in parts:
            shift = size - len(header)
            failures += [
                replace(item, start=item.start + shift, stop=item.stop + shift)
                for item in read_failed(part.paths.errors, part.manifest)
            ]
            for chunk in _rows(part, header):
                seed.write(chunk)
                crc = zlib.crc32(chunk, crc)
                size += len(chunk)
        seed.flush()
        os.fsync(seed.fileno())
    last = parts[-1].manifest
    starts = [start for part in parts for start in part.manifest.starts]
    worked = sum(part.manifest.seconds for part in parts)
    begin(
        paths,
        run,
        *starts,
        Commit(
            row=run.stop,
            offset=last.offset,
            line=last.line,
            size=size,
            crc=crc,
            **_rows_by_status(parts),
            seconds=worked,
            failures=tuple(failures),
        ),
    )


def _rows(part: Part, header: bytes) -> Iterator[bytes]:
    """The bytes of a shard behind its header."""
    with open_output(part.paths) as stream:
        if stream.read(len(header)) != header:
            raise InternalError(
                f"{part.paths.output} does not begin with the header of its run. {ANEW}"
            )
        while chunk := stream.read(CHUNK):
            yield chunk
