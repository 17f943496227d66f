"""The files of a run, and how they are written: whole or not at all, and never over a stranger's.

out.csv                  the finished answers
out.csv.manifest.json    what they are: written last
out.csv.store            the answer store, kept for the next run
out.csv.lock             held while a run writes
out.csv.shards/          the same of each shard, until they are merged
out.csv.input/           the table, where it is a copy of one on an object store
"""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.errors import OutputError, StorageError


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the parts of an output lie. `store` may be a file that several outputs share."""

    output: Path
    store: Path

    @classmethod
    def of(cls, output: Path, store: Path | None = None) -> "Paths":
        return cls(output, store or _beside(output, ".store"))

    @property
    def lock(self) -> Path:
        return _beside(self.output, ".lock")

    @property
    def manifest(self) -> Path:
        return _beside(self.output, ".manifest.json")

    @property
    def shards(self) -> Path:
        return _beside(self.output, ".shards")

    @property
    def input(self) -> Path:
        return _beside(self.output, ".input")


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def check_ours(path: Path) -> bool:
    """Whether there is a file at `path`. Raises OutputError unless it is one that may be ours: a
    regular file with this name alone, for what is done to a link is done to something else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path} cannot be used ({error.strerror}).") from None
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return True
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a hard link"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "no regular file")
    raise OutputError(
        f"{path} is {kind}, which no run made. Move it away, or choose another output."
    )


def has_bytes(path: Path) -> bool:
    """Whether there is a file that is not just being made."""
    try:
        return path.lstat().st_size > 0
    except OSError:
        return False


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


def write_whole(path: Path, data: bytes, *, by_way_of: Path) -> None:
    """Write a file so that it is there in whole or not at all, whatever happens.

    `by_way_of` is the name it has until then, in the same file system.
    """
    with by_way_of.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    replace(by_way_of, path)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns a disk that fails while `path` is written into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}. Every answer committed before is safe. Make room or mend "
            f"the disk (`df -h {shlex.quote(str(path.parent))}`), then run the same command again."
        ) from error
