"""Writing that survives a crash: every byte that a run keeps goes to disk through these functions.

A file is replaced in one step, and a step counts only when it is on disk: the file's bytes first,
then its name in the folder.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrag_batch.errors import StorageError


def append(descriptor: int, data: bytes) -> None:
    """Write all of `data` where the descriptor stands. Raises OSError, perhaps half way."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk; not every network file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Give a file that is on disk another name, in one step that is on disk as well."""
    source.replace(target)
    sync_folder(target.parent)


def write_whole(path: Path, text: str, *, by_way_of: Path) -> None:
    """Write a file so that it is there in whole or not at all, whatever happens.

    `by_way_of` is the name it has until then, in the same file system.
    """
    descriptor = os.open(by_way_of, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        append(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    replace(by_way_of, path)


@contextmanager
def storing(path: Path, size: int) -> Iterator[None]:
    """Turns a disk that fails while `size` bytes are written to `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}, while {size:,} bytes were written. Every row committed "
            "before is safe. Make room or mend the disk, then run the same command again."
        ) from error
