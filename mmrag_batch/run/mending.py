"""A store that cannot be used as it is: moved aside, with what can be read of it saved."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from mmrag_batch.errors import InternalError
from mmrag_batch.run.database import DamagedError, check_store, journal_of
from mmrag_batch.run.files import check_ours, sync_folder
from mmrag_batch.run.store import AnswerStore

log = logging.getLogger(__name__)
OWN_NOTES = ("name", "revision")
"""What a store notes of itself, and another one not."""
T = TypeVar("T")


def mending(path: Path, step: Callable[[], T]) -> T:
    """What `step` gives, which uses the store at `path`; taken again with a mended store if the one
    that is there turns out to be damaged."""
    _finish_salvage(path)
    try:
        return step()
    except DamagedError as error:
        log.warning("%s", error)
        salvage(path)
        return step()


def move_aside(store: Path, word: str = "old") -> Path | None:
    """Give a store another name beside it, as in `out.csv.store.old-1`; which, if there was one."""
    if not check_store(store):
        return None
    number = 1
    while _is_taken(aside := store.with_name(f"{store.name}.{word}-{number}")):
        number += 1
    if journal_of(store).exists():  # what was not committed goes with it
        journal_of(store).replace(journal_of(aside))
    store.replace(aside)
    sync_folder(store.parent)
    return aside


def salvage(path: Path) -> None:
    """Put a new store in place of a damaged one, with every answer that can still be read.

    Raises InternalError if none can.
    """
    new = _mended(path)
    check_store(new)
    for name in (new, journal_of(new)):
        if check_ours(name):
            name.unlink()
    count = 0
    with suppress(DamagedError), AnswerStore(path) as damaged, AnswerStore(new, _nobody) as mended:
        for key, kept in damaged.scan():
            mended.keep(key, kept)
            count += 1
        mended.commit()
        with suppress(DamagedError):
            for noted in damaged.note_names():
                if noted not in OWN_NOTES:
                    mended.note(noted, damaged.read_note(noted))
            for start in damaged.starts():
                mended.add(start, number=start.id)
    if not count:
        raise InternalError(
            f"No answer of {path} can be read: it is damaged. Add `--fresh` to move it aside and "
            "ask every row again."
        )
    aside = move_aside(path, "damaged")
    _finish_salvage(path)
    log.warning("%s was damaged: %s answers could be read. It is %s now.", path, count, aside)


def _finish_salvage(path: Path) -> None:
    """Give a mended store its name, if whoever mended it died before."""
    if check_store(_mended(path)) and not os.path.lexists(path):
        _mended(path).replace(path)
        sync_folder(path.parent)


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path) or os.path.lexists(journal_of(path))


def _mended(path: Path) -> Path:
    return path.with_name(path.name + ".mended")


def _nobody() -> None:
    """Nobody else knows of a store that is being mended."""
