"""The journal of a run: what is safely in the partial output, one line a record.

    1c291ca3 begin {"format": 1, ...}      what the run is; again, if its input was extended
    8f2a0c11 start {"row": 0, ...}         a process took the run up
    0d4a11ef commit {"row": 64, ...}       everything up to here is on disk
    a6be0d93 finish {"sha256": ...}        every row is; the output is about to appear

Each line begins with the CRC-32 of the rest of it. A line is on disk before the run goes on, so
only the last one can be torn, and a torn one counts as never written.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmrag_batch.errors import ConfigError, InternalError
from mmrag_batch.io import disk

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Begin:
    """What a run is: the `rows` that it answers, and all that its answers depend on.

    `first` and `stop` bound the rows (all of them, unless it is a shard), `input_rows` and
    `input_bytes` are those of the whole table.
    """

    fingerprint: Mapping[str, object]
    columns: tuple[str, ...]
    first: int
    stop: int
    input_rows: int
    input_bytes: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Start:
    """A process that took the run up at row `row`. Times are seconds since 1970."""

    row: int
    time: float
    process: Mapping[str, object]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Failure:
    """A row without an answer. `start` and `stop` bound its bytes in the unpacked output."""

    row: int
    line: int
    id: str
    code: str
    message: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Commit:
    """How far the run is. `row` is the next one, `offset` and `line` say where it is in the input.

    `size` and `crc` are the length and the CRC-32 of the partial output, `seconds` is how long
    processes worked on it. `failures` are those since the commit before.
    """

    row: int
    offset: int = 0
    line: int = 0
    size: int = 0
    crc: int = 0
    ok: int = 0
    degraded: int = 0
    error: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The output as it will appear: SHA-256 (hex) and length of the file."""

    sha256: str
    size: int
    time: float


Record = Begin | Start | Commit | Finish
KINDS: dict[str, type[Record]] = {
    "begin": Begin,
    "start": Start,
    "commit": Commit,
    "finish": Finish,
}


@dataclass(slots=True)
class Saved:
    """What a journal says, up to byte `valid` of it.

    `idle` counts the starts since the last commit.
    """

    begin: Begin
    commit: Commit
    starts: list[Start] = field(default_factory=list)
    finish: Finish | None = None
    idle: int = 0
    valid: int = 0


class Journal:
    """Appends records to a journal, each of them on disk when `append` returns."""

    def __init__(self, path: Path, valid: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(self._descriptor, valid)  # a record after a torn one would be torn as well

    def append(self, record: Record) -> None:
        """Write a record. After an OSError nobody knows what was written: write no other."""
        disk.append(self._descriptor, encode(record).encode())
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def encode(record: Record) -> str:
    """The line of a record."""
    kind = next(name for name, kind in KINDS.items() if isinstance(record, kind))
    text = f"{kind} {json.dumps(asdict(record))}"
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def read_journal(path: Path, *, repair: bool = False) -> Saved | None:
    """What a journal says; None if there is none, or nothing in it.

    Raises InternalError, naming the record, for damage that no crash explains; with `repair` the
    journal ends before it. Raises ConfigError for a journal of another format.
    """
    try:
        with path.open("rb") as stream:
            lines = stream.readlines()
    except FileNotFoundError:
        return None
    saved = None
    valid = 0
    last_commit = b""
    for number, line in enumerate(lines, start=1):
        if not _is_whole(line):
            if number < len(lines) and not repair:
                raise InternalError(
                    f"{path}: record {number} of {len(lines)} is damaged. Add `--repair` to answer "
                    "the rows from there on again, or `--fresh` to begin anew."
                )
            break
        valid += len(line)
        if saved is not None and line[9:].startswith(b"commit "):
            last_commit, saved.idle = line, 0  # each of them speaks for those before it
        else:
            saved = _apply(saved, _decode(line), path)
    if saved is not None:
        saved.valid = valid
        if last_commit:
            commit = _decode(last_commit)
            assert isinstance(commit, Commit)
            saved.commit = commit
    return saved


def read_failures(path: Path) -> Iterator[Failure]:
    """The failures in a whole journal, in the order of the rows."""
    with path.open("rb") as stream:
        for line in stream:
            if b'"failures": [{' in line:
                commit = _decode(line)
                if isinstance(commit, Commit):
                    yield from commit.failures


def _apply(saved: Saved | None, record: Record, path: Path) -> Saved:
    if isinstance(record, Begin):
        if record.format != FORMAT:
            raise ConfigError(
                f"{path} has format {record.format}, this version writes {FORMAT}. Go on with the "
                "version that began the run, or add `--fresh` to begin anew."
            )
        if saved is None:
            return Saved(record, Commit(record.first))
        saved.begin = record
    if saved is None:
        raise InternalError(f"{path} does not begin with a run. Add `--fresh` to begin anew.")
    if isinstance(record, Start):
        saved.starts.append(record)
        saved.idle += 1
    elif isinstance(record, Finish):
        saved.finish = record
    return saved


def _is_whole(line: bytes) -> bool:
    crc, _, text = line.removesuffix(b"\n").partition(b" ")
    return line.endswith(b"\n") and crc == b"%08x" % zlib.crc32(text)


def _decode(line: bytes) -> Record:
    _, kind, text = line.decode().split(" ", 2)
    values: dict[str, Any] = json.loads(text)
    if kind == "begin":
        values = {**values, "columns": tuple(values["columns"])}
    if kind == "commit":
        values["failures"] = tuple(Failure(**item) for item in values["failures"])
    return KINDS[kind](**values)
