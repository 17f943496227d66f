"""Weights that a bundle shares with the folder that they come from: one file by two names, which
takes no room and no time, and stays when either name goes."""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from mmrag_batch.export.staging import check_space, nearest_folder
from mmrag_batch.progress import Progress

log = logging.getLogger(__name__)


def can_link(files: Collection[Path], out: Path) -> bool:
    """Whether files lie on the disk that `out` will lie on. It may still refuse to link them."""
    device = nearest_folder(out).stat().st_dev
    return all(file.stat().st_dev == device for file in files)


def link_or_copy(files: Collection[Path], out: Path) -> None:
    """Give each file the same name in the directory `out`, or copy it where that cannot be: to
    another disk, on one without links, from another owner. Raises OutputError where copies have no
    room."""
    copied = [file for file in files if not _is_linked(file, out / file.name)]
    linked = len(files) - len(copied)
    size = sum(file.stat().st_size for file in copied)
    check_space(out, size)
    with Progress("Copying weights", size, "B") as progress:
        for file in copied:
            shutil.copyfile(file, out / file.name)
            progress.advance(file.stat().st_size)
    log.info("Weights: %d of %d files are linked, not copied.", linked, len(files))


def _is_linked(file: Path, link: Path) -> bool:
    try:
        link.hardlink_to(file.resolve())  # of a symbolic link, such as a hub's cache has, the file
    except OSError:  # for whatever reason: a copy does as well
        return False
    return True
