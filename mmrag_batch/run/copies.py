"""What a run reads from object stores as a whole, copied here first: the table beside the output,
where every later command finds it, the bundle into a cache.

out.csv.input/in.csv                 the table
out.csv.input/in.csv.source.json     of which object it is a copy, and of which version of it
~/.cache/mmrag-batch/bundles/        bundles, by the hashes of their manifests

Stores are asked at each start whether a table or a bundle is still what it was; only what changed
is copied again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mmrag_batch.bundle import MANIFEST, open_bundle, read_manifest, sha256
from mmrag_batch.errors import DeniedError, InputError, InternalError, OutputError
from mmrag_batch.masking import mask
from mmrag_batch.progress import Progress
from mmrag_batch.remote import download, find_url, find_version, is_below, read
from mmrag_batch.run import files
from mmrag_batch.run.files import Paths, check_ours
from mmrag_batch.run.lock import hold_lock
from mmrag_batch.settings import PredictSettings
from mmrag_batch.table.text import check_file

log = logging.getLogger(__name__)
MANIFEST_BYTES = 64 * 2**20
"""Most of a bundle's manifest."""


def check_table(settings: PredictSettings) -> None:
    """Raise MissingError without a table, as far as that can be told before a store is asked."""
    if not find_url(settings.input):
        check_file(settings.input)


def bring(settings: PredictSettings, paths: Paths) -> PredictSettings:
    """The settings with what lies elsewhere copied here. Paths of a table's images still begin
    where the table came from. For who holds the lock of `paths`."""
    return bring_bundle(bring_table(settings, Paths.of(settings.output).input, paths.store.name))


@contextmanager
def looking_at(settings: PredictSettings) -> Iterator[PredictSettings]:
    """The same for a while, of the table alone and for who writes no output."""
    if find_url(settings.input) is None:
        yield settings
        return
    with TemporaryDirectory(prefix="mmrag-") as folder:
        yield bring_table(settings, Path(folder), "copy")


def bring_table(settings: PredictSettings, folder: Path, who: str) -> PredictSettings:
    """The settings with a copy of the table in `folder`. `who` is what nobody else copies as.

    Raises MissingError, DeniedError and UnavailableError for what cannot be had, OutputError where
    something else has the name of the folder, InternalError for a table that changes meanwhile.
    """
    url = find_url(settings.input)
    if url is None:
        return settings
    place, _, name = url.rpartition("/")
    if not name:
        raise InputError(f"{mask(url)} is a folder; give the table in it.")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is no folder. Move it away, or choose another output.")
    table, note = folder / name, folder / f"{name}.source.json"
    source = {"url": mask(url), **find_version(url)}
    with files.storing(table):
        folder.mkdir(exist_ok=True)
        if not _is_copy(table, note, source):
            _copy(url, source, table, note, folder / f"{name}.{who}.partial")
    return replace(settings, input=table, image_root=settings.image_root or Path(place))


def _is_copy(table: Path, note: Path, source: dict[str, str]) -> bool:
    """Whether a table is what was copied of this very version, and nobody changed it since."""
    if not check_ours(note) or not check_ours(table):
        return False
    try:
        known = json.loads(note.read_bytes())
    except ValueError:
        return False
    return bool(known == {**source, "sha256": sha256(table)})


def _copy(url: str, source: dict[str, str], table: Path, note: Path, partial: Path) -> None:
    if check_ours(partial):
        partial.unlink()
    with Progress(f"Copying {mask(url)}"):
        download(url, partial)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    after = {"url": mask(url), **find_version(url)}
    if after != source or str(partial.stat().st_size) != source["size"]:
        partial.unlink()
        raise InternalError(f"{mask(url)} was changed while it was copied. Run again.")
    known = {**source, "sha256": sha256(partial)}
    files.replace(partial, table)
    files.write_whole(note, json.dumps(known).encode(), by_way_of=partial)
    log.info("%s: copied to %s.", mask(url), table)


def bring_bundle(settings: PredictSettings) -> PredictSettings:
    """The settings with the copy of the bundle that a cache has, or has now. Of the bundle only its
    manifest and what that lists are read. Raises as `bring_table` and `open_bundle` do."""
    url = find_url(settings.bundle)
    if url is None:
        return settings
    data = read(f"{url}/{MANIFEST}", max_bytes=MANIFEST_BYTES)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache / "mmrag-batch" / "bundles"
    folder = cache / hashlib.sha256(data).hexdigest()[:32]
    partial = cache / f"{folder.name}.partial"
    with files.storing(folder):
        cache.mkdir(parents=True, exist_ok=True)
        with hold_lock(cache / f"{folder.name}.lock", wait=True):
            if not folder.is_dir():
                partial.mkdir(exist_ok=True)
                (partial / MANIFEST).write_bytes(data)
                _download_bundle(url, partial)
                partial.replace(folder)
                log.info("%s: copied to %s.", mask(url), folder)
    return replace(settings, bundle=folder)


def _download_bundle(url: str, folder: Path) -> None:
    """Copy what a manifest lists, but for what was copied before, and check all of it."""
    for name, digest in read_manifest(folder).files.items():
        if "\\" in name or name.startswith("/") or not is_below(f"{url}/{name}", url):
            raise DeniedError(f"{mask(url)}: {name!r} leaves the bundle; do not use it.")
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or sha256(file) != digest:
            with Progress(f"Copying {mask(url)}/{name}"):
                download(f"{url}/{name}", file)
    open_bundle(folder)
