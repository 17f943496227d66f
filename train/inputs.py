"""What a training run reads, by content: a run that goes on must go on with the same.

Models are replaced in place under one name, and so are pictures; nothing else tells.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import RowError
from mmrag_batch.hub.names import shown
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.progress import Progress
from mmrag_batch.sources import image_files
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.rows import read_rows

Hashes = dict[str, str]
READERS = 8
"""Pictures that are read at once: most of the time goes to waiting for the disk."""


def hash_table(table: Path, names: Names = AS_THEY_ARE) -> Hashes:
    """The table, and in one hash all pictures that its rows name, each with what it holds."""
    questions = (row.question for row in read_rows(table, names=names) if row.question is not None)
    sources = sorted({source for question in questions for source in image_files(question)})
    images = ImageLoader(table.parent)
    digest = hashlib.sha256()
    step = Progress("Hashing pictures", len(sources), "pictures")
    with step, ThreadPoolExecutor(READERS) as pool:
        for source, found in zip(sources, pool.map(lambda one: _digest(images, one), sources)):
            digest.update(f"{source}\0{found}\n".encode())
            step.advance()
    return {str(table): sha256(table), f"pictures of {table}": digest.hexdigest()}


def inside(directory: Path, hashes: Mapping[str, str]) -> Hashes:
    """The hashes of files in a directory, by their whole path, or name on the hub."""
    return {f"{shown(directory)}/{name}": digest for name, digest in hashes.items()}


def _digest(images: ImageLoader, source: str) -> str:
    try:
        return images.digest(source)
    except RowError as error:
        return error.code
