"""A directory that is there only when it is whole: made beside its place, then renamed into it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrag_batch.errors import OutputError


def check_out(out: Path, *, overwrite: bool, marker: str, kind: str) -> None:
    """Raise OutputError where `out` exists and is not to be, or cannot be, overwritten.

    Only a directory that holds the file `marker` is taken for an old `kind` and replaced.
    """
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists; choose another directory or add --overwrite.")
    if not (out / marker).is_file():
        raise OutputError(f"{out} exists and is no {kind}, so it is not overwritten; move it away.")


def nearest_folder(out: Path) -> Path:
    """`out`, or the first folder above it that is there."""
    return next(path for path in (out, *out.absolute().parents) if path.exists())


def check_space(out: Path, needed: int) -> None:
    """Raise OutputError where the disk of `out` has less than `needed` bytes free."""
    existing = nearest_folder(out)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{out} needs {needed / 2**30:.1f} GiB and {existing} has {free / 2**30:.1f} GiB free; "
            "make room or choose another disk."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `out` in the end, or goes if something fails."""
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
        _move_into_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)
