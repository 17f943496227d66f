"""A corpus that is being made, or changed: by one process at a time, which may die at any moment.

    look up     which of some documents are there as they are, have changed, or are new
    add         those that are not there as they are: to a segment that nobody names yet
    commit      the segment, and what it replaces, named by building.json: safe, and seen by no one
    finish      what was not looked up is gone; corpus.json names what is left

Every file is on disk before a manifest names it. What no manifest names is removed by the next who
writes, so that readers have the files of the last corpus until then.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mmrag_batch.errors import OutputError
from mmrag_batch.remote import find_url
from mmrag_batch.retrieval.corpus import is_whole
from mmrag_batch.retrieval.corpus_manifest import (
    BUILDING,
    EMBEDDINGS,
    MANIFEST,
    Approximate,
    CorpusManifest,
    Models,
    Segment,
    as_json,
    read_manifest,
)
from mmrag_batch.retrieval.corpus_segment import BLOCK, OpenSegment, Record
from mmrag_batch.run.corpus_files import SegmentFiles, still_serves, write_approximate, write_dead
from mmrag_batch.run.files import storing, sync_folder, write_whole

SEGMENT = 65_536
"""Documents of a segment: as many are lost when a process dies, but for their embeddings."""
DEAD = 0.2
"""The share of rows that do not count, above which a segment is written anew."""
SMALL = 8
"""As many segments of less than a quarter of SEGMENT are written as one."""
OURS = re.compile(
    r"[0-9a-f]{32}\.(vectors|rows|documents|dead|faiss)|(corpus|building)\.json(\.partial)?"
)
log = logging.getLogger(__name__)


class CorpusWriter:
    """The corpus in `directory`, made with `models`; `image_root` is where its images are. It has
    an approximate index if it is to be `approximate`.

    A context manager. Goes on from building.json or else corpus.json; a segment that is damaged, or
    of other models, counts as not there. Raises OutputError for a folder of something else,
    StorageError where the disk fails.
    """

    def __init__(
        self, directory: Path, models: Models, image_root: Path, *, approximate: bool = False
    ) -> None:
        self._directory = directory
        self._models = models
        here = directory.resolve()
        self._image_root = find_url(image_root) or os.path.relpath(image_root.resolve(), here)
        with storing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._check_folder()
            current, building = (read_manifest(directory / name) for name in (MANIFEST, BUILDING))
            self._remove_strays([current, building])
            self._segments = [_Known(directory, one) for one in self._usable(building or current)]
        self._current = current
        self._is_approximate = approximate
        self._approximate = self._usable_index(current) if approximate else None
        self._files: SegmentFiles | None = None
        self._new_ids: dict[bytes, bytes] = {}
        """The documents of the segment that is being written: hashes of id and content."""
        self.added = self.removed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaving the context commits nothing."""
        if self._files is not None:
            self._files.discard()

    def look_up(self, ids: Sequence[bytes], contents: Sequence[bytes]) -> list[str]:
        """What is known of documents, by hashes of 16 bytes: each is `same`, `new` (or changed), or
        `twice` where its id has been looked up, or added, before."""
        known: list[tuple[_Known, int] | None] = [None] * len(ids)
        wanted = np.array(ids, "S16")
        for segment in self._segments:
            for at, row in segment.find(wanted):
                known[at] = (segment, row)
        states, here = [], set[bytes]()
        for name, content, place in zip(ids, contents, known):
            states.append("twice" if name in here else self._look_at(name, content, place))
            here.add(name)
        return states

    def _look_at(self, name: bytes, content: bytes, known: "tuple[_Known, int] | None") -> str:
        if name in self._new_ids:
            return "twice"
        if known is None:
            return "new"
        segment, row = known
        if segment.seen[row]:
            return "twice"
        if _padded(segment.open.rows["content"][row]) != content:
            return "new"
        segment.seen[row] = True
        return "same"

    def add(self, name: bytes, content: bytes, record: Record, vector: NDArray[np.float16]) -> None:
        """A document that is new or has changed, by the hashes that it was looked up with, and its
        vector (D,)."""
        with storing(self._directory):
            if self._files is None:
                self._files = SegmentFiles(self._directory)
            self._files.add(name, content, _line(record), vector.tobytes())
        self._new_ids[name] = content
        if self._files.rows >= SEGMENT:
            self.commit()

    def commit(self) -> None:
        """Make safe what was added; the documents that it stands in for are dead."""
        if self._files is None:
            return
        with storing(self._directory):
            fresh = _Known(self._directory, self._files.close())
            self._files = None
            self.added += len(self._new_ids)
            names = np.array(list(self._new_ids), "S16")
            for segment in self._segments:
                for _, row in segment.find(names):
                    segment.alive[row] = False
            fresh.seen[:] = True
            self._segments.append(fresh)
            self._new_ids.clear()
            self._write(BUILDING)

    def finish(self) -> CorpusManifest:
        """Leave out every document that was not looked up, and let the corpus be seen."""
        self.commit()
        with storing(self._directory):
            for segment in self._segments:
                self.removed += int((segment.alive & ~segment.seen).sum())
                segment.alive &= segment.seen
            self._compact()
            self._approximate = self._derive() if self._is_approximate else None
            manifest = self._write(MANIFEST)
            if (building := self._directory / BUILDING).exists():
                building.unlink()
                sync_folder(self._directory)
            return manifest

    def _compact(self) -> None:
        """Write anew the segments with too much that is dead, and many small ones as one."""
        live = [(segment, int(segment.alive.sum())) for segment in self._segments]
        small = [one for one, count in live if count < SEGMENT // 4]
        poor = [one for one, count in live if count < (1 - DEAD) * len(one.alive)]
        if len(small) > SMALL:
            poor += [one for one in small if one not in poor]
        if not poor:
            return
        kept = [one for one in self._segments if one not in poor]
        for segment in poor:
            for start in range(0, len(segment.alive), BLOCK):
                alive = np.nonzero(segment.alive[start : start + BLOCK])[0]
                vectors = segment.open.vectors(
                    start, min(start + BLOCK, len(segment.alive)), self._models.size
                )
                for row in alive:
                    line, item = segment.open.line(start + row), segment.open.rows[start + row]
                    if self._files is None:
                        self._files = SegmentFiles(self._directory)
                    name, content = _padded(item["id"]), _padded(item["content"])
                    self._files.add(name, content, line, vectors[row].tobytes())
                    if self._files.rows >= SEGMENT:
                        kept.append(_Known(self._directory, self._files.close()))
                        self._files = None
        if self._files is not None:
            kept.append(_Known(self._directory, self._files.close()))
            self._files = None
        self._segments = kept

    def _derive(self) -> Approximate | None:
        for segment in self._segments:
            segment.open.alive = segment.alive
        segments = [one.open for one in self._segments if one.alive.any()]
        if (it := self._approximate) and still_serves(it, segments, SEGMENT // 4, 1 - DEAD):
            return it
        return write_approximate(self._directory, segments, self._models.size) if segments else None

    def _write(self, name: str) -> CorpusManifest:
        """Write a manifest of what there is, once all that it names is on disk."""
        segments = []
        for segment in self._segments:
            spec = segment.open.spec
            if (segment.alive != segment.alive_before).any():
                spec = write_dead(self._directory, spec, segment.alive)
                segment.open.spec, segment.alive_before = spec, segment.alive.copy()
            if segment.alive.any():
                segments.append(spec)
        sync_folder(self._directory)
        manifest = CorpusManifest(
            models=self._models,
            version=self._version() if name == MANIFEST else "",
            documents=sum(int(one.alive.sum()) for one in self._segments),
            image_root=self._image_root,
            segments=tuple(segments),
            approximate=self._approximate if name == MANIFEST else None,
        )
        path = self._directory / name
        if manifest != self._current or name != MANIFEST:
            partial = path.with_name(name + ".partial")
            partial.unlink(missing_ok=True)
            write_whole(path, as_json(manifest), by_way_of=partial)
        return manifest

    def _version(self) -> str:
        """What the corpus holds, however it came to be."""
        parts = [
            np.ascontiguousarray(one.open.rows[["id", "content"]][one.alive])
            for one in self._segments
        ]
        pairs = np.concatenate([np.empty(0, [("id", "S16"), ("content", "S16")]), *parts])
        ordered = pairs[np.argsort(pairs["id"], kind="stable")]
        index = () if (it := self._approximate) is None else (it.sha256, it.probes)
        head = json.dumps([self._models.encoders, self._models.tower, self._models.size, *index])
        return hashlib.sha256(head.encode() + ordered.tobytes()).hexdigest()

    def _check_folder(self) -> None:
        names = sorted(file.name for file in self._directory.iterdir())
        strange = [name for name in names if not OURS.fullmatch(name) and name != EMBEDDINGS]
        if strange:
            raise OutputError(
                f"{self._directory} holds {strange[0]!r}, which is no part of a corpus. Choose "
                "another folder, or move it away."
            )

    def _remove_strays(self, manifests: Iterable[CorpusManifest | None]) -> None:
        named = {name for one in manifests if one is not None for name, _ in one.files()}
        for file in self._directory.iterdir():
            if OURS.fullmatch(file.name) and file.name not in {MANIFEST, BUILDING, *named}:
                file.unlink()

    def _usable(self, manifest: CorpusManifest | None) -> Iterator[Segment]:
        if manifest is None:
            return
        if manifest.models != self._models:
            log.info("%s was made with other models: its vectors are made again.", self._directory)
            return
        for segment in manifest.segments:
            if is_whole(self._directory, segment.files):
                yield segment
            else:
                log.warning("%s: a segment is damaged, and is made again.", self._directory)

    def _usable_index(self, manifest: CorpusManifest | None) -> Approximate | None:
        """The approximate index of before, unless it is damaged or of other models."""
        if manifest is None or manifest.models != self._models or manifest.approximate is None:
            return None
        index = manifest.approximate
        return index if is_whole(self._directory, {index.name: index.sha256}) else None


class _Known:
    """A segment, and what has become of its rows: which are `alive`, and were when its file of dead
    rows was written; which were `seen` since this process began."""

    def __init__(self, directory: Path, spec: Segment) -> None:
        self.open = OpenSegment(directory, spec)
        self.alive = self.open.alive.copy()
        self.alive_before = self.open.alive.copy()
        self.seen = np.zeros(spec.rows, bool)
        self._order = np.argsort(self.open.rows["id"], kind="stable")
        self._ids = self.open.rows["id"][self._order]

    def find(self, ids: NDArray[np.bytes_]) -> Iterator[tuple[int, int]]:
        """The places of those ids that stand in a live row, and the row."""
        places = np.searchsorted(self._ids, ids).clip(max=max(0, len(self._ids) - 1))
        for at in np.nonzero(self._ids[places] == ids)[0]:
            row = int(self._order[places[at]])
            if self.alive[row]:
                yield int(at), row


def _padded(value: bytes) -> bytes:
    """A hash as it was: numpy leaves out zeros at its end."""
    return bytes(value).ljust(16, b"\0")


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
