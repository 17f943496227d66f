"""What is there of a run, and how it goes on: begun anew, resumed, extended, retried, or done.

Running the same command again is the resume. Every function leaves the folder so that the next
command finds a run that it can go on with, wherever this one dies.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import ConfigError, InternalError, OutputError
from mmrag_batch.io import disk
from mmrag_batch.io.draft import Paths
from mmrag_batch.io.journal import Begin, Record, Saved, encode, read_journal
from mmrag_batch.io.manifest import Manifest, read_manifest, remove_state
from mmrag_batch.run.fingerprint import differences

ANEW = "Add `--fresh` to begin anew (what is there is kept aside), or choose another output."


def find(paths: Paths, *, repair: bool, overwrite: bool) -> Saved | Manifest | None:
    """The unfinished or the complete run at an output, if there is one.

    Raises OutputError for an output that no run of ours made, unless `overwrite` is set,
    InternalError for rows without a journal that vouches for them.
    """
    saved = read_journal(paths.journal, repair=repair)
    if saved is not None:
        return saved
    if paths.partial.exists():
        raise InternalError(f"{paths.partial} has no journal that says what it is. {ANEW}")
    remove_state(paths)
    if not paths.output.exists():
        return None
    manifest = read_manifest(paths.manifest)
    if manifest is None and not overwrite:
        raise OutputError(f"{paths.output} exists. Choose another output, or add `--overwrite`.")
    return manifest


def move_aside(paths: Paths) -> Path | None:
    """Move all files of a run to a folder of their own beside it; the folder, if there were any."""
    files = (paths.state, paths.partial, paths.output, paths.errors, paths.manifest)
    there = [file for file in files if os.path.lexists(file)]
    if not there:
        return None
    number = 1
    while (folder := paths.output.with_name(f"{paths.output.name}.old-{number}")).exists():
        number += 1
    folder.mkdir()
    for file in there:  # the journal first: what is left of the run then speaks of no rows
        disk.replace(file, folder / file.name)
    return folder


def begin(paths: Paths, run: Begin, *more: Record) -> Saved:
    """Begin a run, with `more` in its journal if rows of it are already there."""
    paths.state.mkdir(exist_ok=True)
    text = "".join(encode(record) for record in (run, *more))
    disk.write_whole(paths.journal, text, by_way_of=paths.state / "new")
    disk.sync_folder(paths.output.parent)
    saved = read_journal(paths.journal)
    assert saved is not None  # it was just written
    return saved


def check_same(paths: Paths, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise ConfigError that lists every part of the fingerprint that is not as it was."""
    found = differences(before, now)
    if found:
        lines = "\n".join(f"  {line}" for line in found.values())
        raise ConfigError(f"{paths.output} was begun with something else:\n{lines}\n{ANEW}")


def check_output_unchanged(paths: Paths, manifest: Manifest) -> None:
    """Raise ConfigError if the output is not what its manifest says."""
    if sha256(paths.output) != manifest.sha256:
        raise ConfigError(
            f"{paths.output} was changed since it was written: it is not what "
            f"{paths.manifest.name} says. {ANEW}"
        )
