"""The last steps of a run: the output appears in one step, whole, and beside it what it is.

Before the step, the store notes what is about to appear. So a run that dies between two steps, or
whose manifest is lost, is known by its bytes, and what it left behind is removed.
"""

import gzip
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, cast

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import InternalError, PartialError
from mmrag_batch.records import Answer, Problem, Status
from mmrag_batch.run import files
from mmrag_batch.run.answers import Counts, no_rows, to_answer
from mmrag_batch.run.files import Paths
from mmrag_batch.run.job import Job
from mmrag_batch.run.manifest import (
    Manifest,
    check_replaceable,
    forget_temporary,
    name_temporary,
    note_manifest,
    write_manifest,
)
from mmrag_batch.run.presentation import Presentation, present
from mmrag_batch.run.progress import told
from mmrag_batch.run.store import LOOK_UP, AnswerStore
from mmrag_batch.run.survey import NO_KEY, Survey
from mmrag_batch.stages import in_batches
from mmrag_batch.table.output import RowFormat
from mmrag_batch.table.rows import parse_row, read_records

log = logging.getLogger(__name__)
FEW = 5
"""Failed rows that a manifest shows."""


def publish(
    paths: Paths, job: Job, survey: Survey, store: AnswerStore, *, asked: int, overwrite: bool
) -> Manifest:
    """Write the output from the table and the store, and its manifest.

    Raises InternalError, and publishes nothing, unless each row of the table is written with an
    answer and the table is what it was when its keys were taken; StorageError where the disk fails.
    """
    temporary = name_temporary(paths, store)
    with files.storing(paths.output):
        tally = Tally()
        shown = job.presentation
        digest = write_answers(temporary, paths.output.name, survey, store, tally, shown)
        _check(survey, tally)
        done = check_replaceable(paths, overwrite=overwrite)
        starts = {start.id: start for start in store.starts()}
        manifest = Manifest(
            sha256=digest,
            rows=tally.rows,
            codes=tally.codes,
            failed=tuple(tally.failed),
            input={
                "sha256": survey.sha256,
                "rows": survey.rows,
                "columns": survey.columns,
                "names": dict(survey.names),
            },
            limit=job.limit,
            settings=job.settings,
            asked=asked,
            kept=len(survey.chosen) - survey.unreadable - asked,
            revision=store.revision,
            starts=tuple(asdict(starts[number]) for number in sorted(tally.starts & starts.keys())),
            seconds=round(sum(starts[n].seconds for n in tally.starts & starts.keys()), 3),
            finished=time.time(),
            unscored=tally.unscored,
            presentation=asdict(job.presentation),
        )
        if done is not None and done.sha256 == digest:
            temporary.unlink()
        else:
            note_manifest(paths, store, manifest)
            files.replace(temporary, paths.output)
        write_manifest(paths, manifest, temporary)
    forget_temporary(store)
    if tally.unscored:
        kept = ", and are never withheld" if job.presentation.abstain_below else ""
        what = f"{tally.unscored:,} choices have no probabilities{kept}: the server gave none."
        log.info("%s", what)
    return manifest


def check_failures(
    rows: Mapping[Status, int], manifest: Manifest | None, *, allowed: float, command: str
) -> None:
    """Raise PartialError if more than `allowed` rows have no answer; `command` asks them again."""
    if rows["error"] <= allowed:
        return
    what = f"{rows['error']:,} of {sum(rows.values()):,} rows have no answer"
    if manifest is not None:
        codes = ", ".join(f"{code} {count:,}" for code, count in manifest.codes.items())
        what += f" ({codes}), the first in {manifest.failed[0].rstrip('.')}"
    raise PartialError(f"{what}. Mend the cause, then run `{command} --retry-errors`.")


@dataclass(slots=True)
class Tally:
    """What was written."""

    rows: Counts = field(default_factory=no_rows)
    codes: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    starts: set[int] = field(default_factory=set)
    missing: int = 0
    unscored: int = 0

    def add(self, line: int, answer: Answer) -> None:
        self.rows[answer.status] = self.rows.get(answer.status, 0) + 1
        self.unscored += answer.index is not None and not answer.probabilities
        if answer.status == "error":
            (problem,) = answer.problems
            self.codes[problem.code] = self.codes.get(problem.code, 0) + 1
            if len(self.failed) < FEW:
                self.failed.append(f"line {line}: {problem.code}: {problem.message}")


def write_answers(
    target: Path,
    name: str,
    survey: Survey,
    store: AnswerStore,
    tally: Tally,
    presentation: Presentation,
) -> str:
    """Write the rows that have an answer to a new file `target`, as an output called `name` has
    them; the SHA-256 (hex) of its bytes, which are on disk."""
    row_format = RowFormat(Path(name), survey.columns, survey.table)
    records = enumerate(
        told(read_records(survey.table, survey.names), f"rows of {name} are written")
    )
    packed = name.lower().endswith(".gz")
    marked = zip(survey, islice(records, survey.chosen.start, None))
    with _create(target, packed=packed) as (stream, digest):
        stream.write(row_format.header)
        for batch in in_batches(marked, LOOK_UP):
            answers = store.find_all([mark.key for mark, _ in batch])
            for mark, (number, record) in batch:
                assert mark.number == number
                if mark.key == NO_KEY:
                    error = parse_row(number, record, survey.names).error
                    problem = error or Problem("bad_row", "the table was changed while it was read")
                    answer = Answer("error", problems=(problem,))
                elif (kept := answers.get(mark.key)) is not None:
                    answer = present(to_answer(kept), presentation)
                    tally.starts.add(kept.start)
                else:
                    tally.missing += 1
                    continue
                tally.add(record.line, answer)
                stream.write(row_format.row(record.cells, record.line, answer))
        stream.write(row_format.end())
    return digest.hexdigest()


def _check(survey: Survey, tally: Tally) -> None:
    written = sum(tally.rows.values())
    again = "Nothing was published. Run the same command again."
    if sha256(survey.table) != survey.sha256:
        raise InternalError(f"{survey.table} was changed while it was read. {again}")
    if written != len(survey.chosen) or tally.missing:
        raise InternalError(
            f"{written:,} of {len(survey.chosen):,} rows have an answer now. {again}"
        )


class _Digesting:
    """A file that is hashed while it is written."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._digest = hashlib.sha256()
        self.hexdigest = self._digest.hexdigest
        self.flush = raw.flush

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._raw.write(data)


@contextmanager
def _create(path: Path, *, packed: bool) -> Iterator[tuple[IO[bytes], _Digesting]]:
    """A new file that is on disk when the context is left."""
    with path.open("xb", buffering=2**20) as raw:
        target = _Digesting(raw)
        if packed:
            # Without a name and a time stamp: same rows, same bytes.
            with gzip.GzipFile("", "wb", fileobj=cast(IO[bytes], target), mtime=0) as stream:
                yield cast(IO[bytes], stream), target
        else:
            yield cast(IO[bytes], target), target
        raw.flush()
        os.fsync(raw.fileno())
