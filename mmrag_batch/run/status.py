"""What `mmrag-batch status` says of an output, finished or not: lines, or facts for programs."""

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import MissingError, MmragError
from mmrag_batch.records import Status
from mmrag_batch.run.answers import Start, in_words, rate
from mmrag_batch.run.database import UnbegunError
from mmrag_batch.run.files import Paths, has_bytes
from mmrag_batch.run.lock import find_holder
from mmrag_batch.run.manifest import Manifest, check_replaceable, find_manifest
from mmrag_batch.run.shards import Shard, find_shards
from mmrag_batch.run.store import AnswerStore


class Part(NamedTuple):
    """A part of an output that it does not show yet: how far its last start came, and who is at it;
    `problem` says why nobody can tell."""

    name: str
    shard: Shard | None
    start: Start | None
    holder: str | None
    problem: str

    @property
    def is_done(self) -> bool:
        start = self.start
        return start is not None and sum(start.rows.values()) == start.stop - start.first


class Standing(NamedTuple):
    """Where an output stands: what it is, if it is finished, and the parts that it does not show;
    `changed` says that somebody has edited it since."""

    paths: Paths
    manifest: Manifest | None
    parts: Sequence[Part]
    changed: bool

    @property
    def arrays(self) -> Iterator[tuple[int, list[Part]]]:
        """The shards among the parts, by what the table was divided by."""
        shards = [part for part in self.parts if part.shard is not None]
        for count in sorted({part.shard.count for part in shards if part.shard}):
            yield count, [part for part in shards if part.shard and part.shard.count == count]

    @property
    def next(self) -> str | None:
        """What to type where all is answered and nothing written."""
        for count, array in self.arrays:
            if len(array) == count and all(part.is_done and not part.holder for part in array):
                return f"mmrag-batch merge {shlex.quote(str(self.paths.output))}"
        return None

    def check(self) -> None:
        """Raise ConfigError for an output that was changed since a run wrote it."""
        if self.changed:
            check_replaceable(self.paths, overwrite=False)


def find_standing(paths: Paths) -> Standing:
    """Where an output stands. Raises MissingError if there is no run of it."""
    output = paths.output
    manifest = find_manifest(paths) if output.exists() else None
    parts = list(_find_parts(paths, manifest))
    if manifest is None and not parts:
        raise MissingError(
            f"{output} is no output of a run, nor is one on its way. Start one with "
            f"`mmrag-batch predict INPUT {output}`."
        )
    changed = manifest is not None and manifest.sha256 != sha256(output)
    return Standing(paths, manifest, parts, changed)


def describe(standing: Standing) -> Iterator[str]:
    """Lines for people."""
    if standing.manifest is not None:
        yield from _describe_complete(standing.paths.output, standing.manifest)
    for part in standing.parts:
        yield from _describe_part(part)
    for count, array in standing.arrays:
        if len(starts := [part.start for part in array if part.start is not None]) > 1:
            yield f"{len(array)} of {count} shards: {_progress(_sum(starts))}"
    if standing.next is not None:
        yield f"  Next: {standing.next}"


def facts_of(standing: Standing) -> dict[str, Any]:
    """The same for programs. Times are seconds, `finished` is one since 1970."""
    manifest = standing.manifest
    complete = manifest and {
        "finished": manifest.finished,
        "changed": standing.changed,
        "rows": manifest.rows,
        "asked": manifest.asked,
        "kept": manifest.kept,
        "seconds": manifest.seconds,
        "rows_per_second": rate(sum(one["asked"] for one in manifest.starts), manifest.seconds),
        "codes": manifest.codes,
        "failed": manifest.failed,
    }
    parts = [
        {
            "shard": part.shard and f"{part.shard.index}/{part.shard.count}",
            "holder": part.holder,
            "problem": part.problem or None,
            "done": part.is_done,
            "start": part.start and _facts_of(part.start),
        }
        for part in standing.parts
    ]
    output = str(standing.paths.output)
    return {"output": output, "complete": complete, "parts": parts, "next": standing.next}


def _facts_of(start: Start) -> dict[str, Any]:
    return {
        "expected": start.stop - start.first,
        "rows": start.rows,
        "asked": start.asked,
        "kept": start.kept,
        "tokens": start.usage,
        "seconds": start.seconds,
        "rows_per_second": rate(start.asked, start.seconds),
        "seconds_left": _seconds_left(start),
    }


def _find_parts(paths: Paths, manifest: Manifest | None) -> Iterator[Part]:
    shards = ((f"shard {s.index} of {s.count}", s, its) for s, its in find_shards(paths.output))
    for name, shard, its in [(str(paths.output), None, paths), *shards]:
        start, problem, holder = None, "", find_holder(its.lock)
        if has_bytes(its.store):
            try:
                with AnswerStore(its.store) as store:
                    start = next(reversed(store.starts()), None)
            except MmragError as error:
                is_new = isinstance(error, UnbegunError) and holder is not None
                problem = "" if is_new else str(error)
        part = Part(name, shard, start, holder, problem)
        if part.holder or problem or not _is_shown(part, manifest):
            yield part


def _is_shown(part: Part, manifest: Manifest | None) -> bool:
    """Whether the output has what a part has answered."""
    if part.start is None:
        return True
    if manifest is None or not part.is_done:
        return False
    return part.shard is None or part.start.time in {start["time"] for start in manifest.starts}


def _describe_part(part: Part) -> Iterator[str]:
    so_far = "no row is asked yet." if part.start is None else _progress(part.start)
    yield f"{part.name}: {part.problem or so_far}"
    if part.holder is not None:
        yield f"  At work: {part.holder}."
    elif not part.problem and not (part.is_done and part.shard):
        todo = "write it" if part.is_done else "go on"
        yield f"  Nobody works on it. Run the same command again to {todo}."


def _describe_complete(output: Path, manifest: Manifest) -> Iterator[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.finished))
    speed = _speed(sum(start["asked"] for start in manifest.starts), manifest.seconds)
    yield f"{output}: complete since {when}: {in_words(manifest.rows)}{speed}."
    yield f"  The last run asked {manifest.asked:,} rows and kept {manifest.kept:,}."
    yield from (f"  {problem}" for problem in manifest.failed)
    if (more := manifest.rows["error"] - len(manifest.failed)) > 0:
        yield f"  ... and {more:,} more, in the column `error`."


def _progress(start: Start) -> str:
    done, total = sum(start.rows.values()), start.stop - start.first
    line = f"{done:,} of {total:,} rows are done ({in_words(start.rows)}): {start.asked:,} asked, "
    line += f"{start.kept:,} kept{_speed(start.asked, start.seconds)}"
    if (left := _seconds_left(start)) is not None:
        line += f", {_duration(left)} left"
    return line + "."


def _seconds_left(start: Start) -> float | None:
    left = start.stop - start.first - sum(start.rows.values())
    speed = rate(start.asked, start.seconds)
    return left / speed if left and speed else None


def _sum(starts: list[Start]) -> Start:
    """The starts of shards as one, which work side by side."""
    rows = Counter[Status]()
    for start in starts:
        rows.update(start.rows)
    stop = sum(start.stop - start.first for start in starts)
    kept, asked = sum(start.kept for start in starts), sum(start.asked for start in starts)
    seconds = max(start.seconds for start in starts)
    return replace(
        starts[0], first=0, stop=stop, kept=kept, rows=dict(rows), asked=asked, seconds=seconds
    )


def _speed(rows: int, seconds: float) -> str:
    speed = rate(rows, seconds)
    return "" if speed is None else f", {speed:,.1f} rows/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
