"""The last steps of a run: the output appears, and beside it what it is made of.

    out.csv.errors.jsonl     the rows without an answer, if there are any
    out.csv                  in one step, whole
    out.csv.manifest.json    written last: if it is there, the run is complete

Every step can be taken again, so a run that dies between two of them goes on where it was.
"""

import gzip
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import InternalError
from mmrag_batch.io import disk
from mmrag_batch.io.draft import Paths
from mmrag_batch.io.journal import Finish, Journal, Saved, Start, read_failures, read_journal

CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a complete output is: `rows` by status, and all that its answers depend on.

    `first` and `stop` bound its rows, `offset` and `line` are where the input ends. `starts` are
    the processes that worked on it, with their versions; `seconds` is how long they did.
    """

    sha256: str
    size: int
    rows: Mapping[str, int]
    first: int
    stop: int
    input_rows: int
    input_bytes: int
    offset: int
    line: int
    columns: tuple[str, ...]
    fingerprint: Mapping[str, object]
    starts: tuple[Start, ...]
    seconds: float
    finished: float


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None if there is none. Raises InternalError if it is none of ours."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        starts = tuple(Start(**start) for start in values.pop("starts"))
        known = {item.name: values[item.name] for item in fields(Manifest) if item.name in values}
        return Manifest(**{**known, "columns": tuple(values["columns"])}, starts=starts)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InternalError(
            f"{path} cannot be read ({error}). Add `--fresh` to begin anew."
        ) from error


def publish(paths: Paths) -> Manifest:
    """Let the output of a run whose last row is committed appear, and clean up.

    Raises InternalError if the partial file is not what was committed, StorageError where the disk
    fails.
    """
    saved = read_journal(paths.journal)
    if saved is None:
        raise InternalError(f"{paths.journal} is gone. Run the same command again.")
    with disk.storing(paths.output, saved.commit.size):
        if paths.partial.exists() or saved.finish is None:
            _check(paths, saved)
            ready = _pack(paths)
            saved.finish = _note_finish(paths, saved, ready)
            failures = map(asdict, read_failures(paths.journal))
            write_failures(paths.errors, failures, by_way_of=paths.state / "errors")
            disk.replace(ready, paths.output)
        elif sha256(paths.output) != saved.finish.sha256:
            raise InternalError(f"{paths.output} was changed. Add `--fresh` to begin anew.")
        manifest = _manifest(saved, saved.finish)
        text = json.dumps(asdict(manifest), indent=2) + "\n"
        disk.write_whole(paths.manifest, text, by_way_of=paths.state / "manifest")
        remove_state(paths)
    return manifest


def write_failures(path: Path, lines: Iterator[Mapping[str, object]], *, by_way_of: Path) -> None:
    """Write the rows without an answer to `path`, one a line, if there are any."""
    descriptor = os.open(by_way_of, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        empty = True
        for line in lines:
            disk.append(descriptor, (json.dumps(line) + "\n").encode())
            empty = False
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if empty:
        by_way_of.unlink()
        path.unlink(missing_ok=True)
    else:
        disk.replace(by_way_of, path)


def remove_state(paths: Paths) -> None:
    """Remove all that only an unfinished run needs, the journal before what it speaks of."""
    if not paths.state.is_dir():
        return
    paths.partial.unlink(missing_ok=True)
    paths.journal.unlink(missing_ok=True)
    for file in paths.state.iterdir():
        file.unlink()
    paths.state.rmdir()


def _check(paths: Paths, saved: Saved) -> None:
    """Raise InternalError unless the partial file is what was committed."""
    crc = size = 0
    with paths.partial.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    if (crc, size) != (saved.commit.crc, saved.commit.size):
        raise InternalError(
            f"{paths.partial} is not what was written to it. Add `--fresh` to begin anew."
        )


def _pack(paths: Paths) -> Path:
    """The file to publish: the partial one, compressed if the output's name asks for it."""
    if not paths.output.name.lower().endswith(".gz"):
        return paths.partial
    packed = paths.state / "packed"
    with paths.partial.open("rb") as stream, packed.open("wb") as raw:
        # Without a name and a time stamp: same rows, same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
            shutil.copyfileobj(stream, out, CHUNK)
        raw.flush()
        os.fsync(raw.fileno())
    return packed


def _note_finish(paths: Paths, saved: Saved, ready: Path) -> Finish:
    finish = Finish(sha256(ready), ready.stat().st_size, time.time())
    journal = Journal(paths.journal, saved.valid)
    try:
        journal.append(finish)
    finally:
        journal.close()
    return finish


def _manifest(saved: Saved, finish: Finish) -> Manifest:
    begin, commit = saved.begin, saved.commit
    return Manifest(
        sha256=finish.sha256,
        size=finish.size,
        rows={"ok": commit.ok, "degraded": commit.degraded, "error": commit.error},
        first=begin.first,
        stop=begin.stop,
        input_rows=begin.input_rows,
        input_bytes=begin.input_bytes,
        offset=commit.offset,
        line=commit.line,
        columns=begin.columns,
        fingerprint=begin.fingerprint,
        starts=tuple(saved.starts),
        seconds=round(commit.seconds, 3),
        finished=finish.time,
    )
