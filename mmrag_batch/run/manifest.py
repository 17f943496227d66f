"""What a finished output is: its manifest, beside it and noted in the store.

A run that dies between the output's appearance and its manifest, or whose manifest is lost, is
known by the note and the output's bytes.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import ConfigError, InternalError, OutputError
from mmrag_batch.records import Status
from mmrag_batch.run import files
from mmrag_batch.run.files import Paths, check_ours
from mmrag_batch.run.store import AnswerStore

FORMAT = 2
"""Of an output: since 2, it has the column `confidence_per_token`."""
TEMPORARY = "temporary"
"""The note that names the file which becomes the output."""
PUBLISHED = "published "
"""What the note begins with that says what an output was when it appeared."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished output is.

    `rows` counts them by status, `failed` shows the first without an answer, `codes` counts all of
    those by their problem. `input` is the table: its SHA-256, its number of rows, its columns.
    `asked` and `kept` are the rows that the last run asked and found answered, `revision` the state
    of the store. `starts` are the processes that gave answers, `seconds` is how long they answered.
    `unscored` are the rows whose choice has no probability; `presentation` is how answers were
    shown (`presentation.py`).
    """

    sha256: str
    rows: Mapping[Status, int]
    codes: Mapping[str, int]
    failed: tuple[str, ...]
    input: Mapping[str, Any]
    limit: int | None
    settings: Mapping[str, object]
    asked: int
    kept: int
    revision: int
    starts: tuple[Mapping[str, Any], ...]
    seconds: float
    finished: float
    unscored: int = 0
    presentation: Mapping[str, float] = field(default_factory=dict)
    format: int = FORMAT


def read_manifest(paths: Paths) -> Manifest | None:
    """The manifest of an output; None where there is none that is whole."""
    if not check_ours(paths.manifest):
        return None
    try:
        return parse_manifest(paths.manifest.read_bytes())
    except OSError:
        return None


def parse_manifest(data: bytes) -> Manifest | None:
    """The manifest that a file of such bytes is; None where it is none that is whole."""
    try:
        values = json.loads(data)
        checksum = values.pop("checksum")
        return Manifest(**values) if checksum == _checksum(values) else None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def find_manifest(paths: Paths) -> Manifest | None:
    """The manifest of an output for who only looks, lost or not."""
    if files.has_bytes(paths.store):
        with suppress(ConfigError, InternalError, OutputError), AnswerStore(paths.store) as store:
            if (lost := _find_lost(paths, store)) is not None:
                return lost
    return read_manifest(paths)


def find_published(paths: Paths, store: AnswerStore, *, overwrite: bool) -> Manifest | None:
    """What `check_replaceable` finds once that is made good which a run left behind that died while
    it published, or a manifest that was lost."""
    _remove_temporary(store)
    _restore_manifest(paths, store)
    is_new = store.read_note(_note_name(paths)) is None and not check_ours(paths.output)
    if is_new and check_ours(paths.manifest) and read_manifest(paths) is None:
        raise OutputError(f"{paths.manifest} is no manifest of a run. Move it away.")
    return check_replaceable(paths, overwrite=overwrite)


def settle(store: AnswerStore) -> None:
    """Make good what a run left behind that died while it published: its temporary file goes, and
    each output of the store that has no manifest gets it. Nothing that stays needs the store."""
    _remove_temporary(store)
    for name in store.note_names():
        if name.startswith(PUBLISHED):
            paths = Paths.of(store.path.parent / name.removeprefix(PUBLISHED), store.path)
            with suppress(OutputError):  # something else has its name now
                _restore_manifest(paths, store)


def _remove_temporary(store: AnswerStore) -> None:
    if (temporary := store.read_note(TEMPORARY)) is not None:
        abandoned = store.path.with_name(temporary)
        if check_ours(abandoned):
            abandoned.unlink()
        forget_temporary(store)


def _restore_manifest(paths: Paths, store: AnswerStore) -> None:
    if (lost := _find_lost(paths, store)) is not None:
        write_manifest(paths, lost, name_temporary(paths, store))
        forget_temporary(store)


def _find_lost(paths: Paths, store: AnswerStore) -> Manifest | None:
    """The manifest that an output should have by what the store has noted, and has not."""
    noted, manifest = store.read_note(_note_name(paths)), read_manifest(paths)
    if noted is None or not check_ours(paths.output):
        return None
    if manifest is not None and manifest.sha256 == noted["sha256"]:
        return None
    return Manifest(**noted) if sha256(paths.output) == noted["sha256"] else None


def check_replaceable(paths: Paths, *, overwrite: bool) -> Manifest | None:
    """The manifest of an output that this run may replace, if there is one.

    Raises OutputError for an output that no run wrote, ConfigError for one that was changed since,
    unless `overwrite` is set.
    """
    manifest = read_manifest(paths)
    if not check_ours(paths.output):
        return None
    check_ours(paths.manifest)
    if manifest is not None and sha256(paths.output) == manifest.sha256:
        return manifest
    if not overwrite:
        if manifest is None:
            raise OutputError(
                f"{paths.output} is there, and no manifest says what it is. Choose another output, "
                "or add `--overwrite` to replace it."
            )
        raise ConfigError(
            f"{paths.output} was changed since it was written: it is not what "
            f"{paths.manifest.name} says. Add `--overwrite` to write it anew from its answers, or "
            "choose another output."
        )
    return None


def name_temporary(paths: Paths, store: AnswerStore) -> Path:
    """A new name beside the output, noted so that the next run removes what is left of it."""
    name = paths.output.name
    while os.path.lexists(path := paths.output.with_name(f"{name}.{secrets.token_hex(4)}.tmp")):
        pass
    store.note(TEMPORARY, os.path.relpath(path, paths.store.parent))
    return path


def write_manifest(paths: Paths, manifest: Manifest, temporary: Path) -> None:
    values = json.loads(json.dumps(asdict(manifest)))
    text = json.dumps({**values, "checksum": _checksum(values)}, indent=2) + "\n"
    files.write_whole(paths.manifest, text.encode(), by_way_of=temporary)


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def note_manifest(paths: Paths, store: AnswerStore, manifest: Manifest) -> None:
    """Note what is about to appear."""
    store.note(_note_name(paths), asdict(manifest))


def forget_temporary(store: AnswerStore) -> None:
    """Note that nothing is left to remove."""
    store.note(TEMPORARY, None)


def _note_name(paths: Paths) -> str:
    """The note of what appeared; several outputs may share a store."""
    return PUBLISHED + os.path.relpath(paths.output, paths.store.parent)
