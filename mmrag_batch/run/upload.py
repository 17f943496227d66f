"""An output that is whole, written to an object store as well: the output, then its manifest.

Each is one object, which appears in whole. Who reads there takes an output for finished once its
manifest has its SHA-256.
"""

import logging
from pathlib import Path

from mmrag_batch.errors import MissingError, OutputError, StorageError
from mmrag_batch.masking import mask
from mmrag_batch.remote import find_url, find_version, read, upload
from mmrag_batch.run.files import Paths
from mmrag_batch.run.manifest import parse_manifest

log = logging.getLogger(__name__)
MANIFEST_BYTES = 64 * 2**20


def check_upload(output: Path, place: str | None, *, overwrite: bool) -> bytes | None:
    """The manifest of what is at the place of an upload, if a run wrote that. Raises OutputError
    for an output that none did, unless it is to be replaced, UnavailableError and DeniedError."""
    if place is None:
        return None
    target = _target(output, place)
    try:
        data = read(f"{target}.manifest.json", max_bytes=MANIFEST_BYTES)
    except MissingError:
        data = None
    if not overwrite and (data is None or parse_manifest(data) is None) and _is_there(target):
        raise OutputError(
            f"{mask(target)} is there, and no manifest says what it is. Choose another place, or "
            "add `--overwrite` to replace it."
        )
    return data


def upload_output(paths: Paths, place: str | None, *, overwrite: bool) -> None:
    """Write an output to a place, if there is one, and then its manifest, unless both are there.

    Raises what `check_upload` does, and StorageError where it cannot be written.
    """
    if place is None:
        return
    target, manifest = _target(paths.output, place), paths.manifest.read_bytes()
    if check_upload(paths.output, place, overwrite=overwrite) == manifest and _is_there(target):
        return
    upload(paths.output, target)
    if find_version(target)["size"] != str(paths.output.stat().st_size):
        raise StorageError(f"{mask(target)} has lost bytes on its way. Run the same command again.")
    upload(paths.manifest, f"{target}.manifest.json")
    log.info("%s: copied to %s.", paths.output, mask(target))


def _target(output: Path, place: str) -> str:
    return f"{(find_url(place) or place).rstrip('/')}/{output.name}"


def _is_there(url: str) -> bool:
    try:
        find_version(url)
    except MissingError:
        return False
    return True
