"""What a table asks: read once, for its structure, the key of each row, and which have no answer.

The keys wait in a file without a name, so that memory does not grow with the table and no later
reading has to understand a cell again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from mmrag_batch.bundle import sha256
from mmrag_batch.records import Question, Row, Status
from mmrag_batch.run.answers import STATUSES, Counts, Kept
from mmrag_batch.run.keys import KEY_BYTES
from mmrag_batch.run.progress import told
from mmrag_batch.run.shards import Shard, shard_rows
from mmrag_batch.run.store import LOOK_UP, AnswerStore
from mmrag_batch.stages import in_batches
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.rows import parse_row, read_header, scan

MARK_BYTES = KEY_BYTES + 1
BUFFER = 2**16
NO_KEY = bytes(KEY_BYTES)
"""Of a row that cannot be read, and so asks nothing."""
MISSING = len(STATUSES)
ERROR = STATUSES.index("error")

KeyMaker = Callable[[Question], bytes]
Accepts = Callable[[Question, Kept], bool]
"""Whether an answer that is kept will do."""


class Mark(NamedTuple):
    """What is known of row `number`: its key, and the place in STATUSES of its answer's status, or
    MISSING where it has no answer."""

    number: int
    key: bytes
    status: int


class Survey:
    """The rows `chosen` of a table and a mark for each, in order.

    `columns` are the table's, `names` what it calls ours. `sha256` is that of the table, `rows` the
    number of all of its rows, `notes` what is to be said of them.
    """

    def __init__(
        self, table: Path, chosen: range, columns: tuple[str, ...], names: Names, sha256: str
    ) -> None:
        self.table = table
        self.names = names
        self.sha256 = sha256
        self.columns = columns
        self.chosen = chosen
        self.rows = 0
        self.unreadable = 0
        """Rows that no model will be asked about; they count as errors."""
        self.complaint = ""
        """What is wrong with the first of them."""
        self.counts = [0] * (MISSING + 1)
        """Rows by their marks."""
        self.with_documents = 0
        """The line of the first row without an answer that has documents; 0: there is none."""
        self.notes: dict[str, None] = {}
        self._marks = TemporaryFile(buffering=BUFFER)  # noqa: SIM115  # `close` does

    def close(self) -> None:
        """Forget the marks."""
        self._marks.close()

    @property
    def missing(self) -> int:
        """How many rows have no answer."""
        return self.counts[MISSING]

    def by_status(self) -> Counts:
        """How many rows have an answer, by status."""
        return dict(zip(STATUSES, self.counts))

    def __iter__(self) -> Iterator[Mark]:
        """The marks in order; for one reader at a time."""
        return self._read(self._marks)

    def _read(self, marks: IO[bytes]) -> Iterator[Mark]:
        number = self.chosen.start
        marks.seek(0)
        while data := marks.read(MARK_BYTES * 1024):
            for at in range(0, len(data), MARK_BYTES):
                key = data[at : at + KEY_BYTES]
                yield Mark(number, key, data[at + KEY_BYTES])
                number += 1

    def add(self, key: bytes, status: int) -> None:
        """The mark of the next row."""
        self.counts[status] += 1
        self._marks.write(key + bytes([status]))

    def look_again(self, store: AnswerStore, again: frozenset[Status]) -> None:
        """Note which rows have an answer by now; those with a status in `again` have none."""
        before = self._marks
        self.counts, self._marks = [0] * (MISSING + 1), TemporaryFile(buffering=BUFFER)  # noqa: SIM115
        for marks in in_batches(self._read(before), LOOK_UP):
            answers = store.find_all([mark.key for mark in marks])
            for _, key, status in marks:
                if key != NO_KEY:
                    kept = answers.get(key)
                    is_answer = kept is not None and STATUSES[kept.status] not in again
                    status = kept.status if kept is not None and is_answer else MISSING
                self.add(key, status)
        before.close()


def take_survey(
    table: Path,
    store: AnswerStore,
    key_of: KeyMaker,
    accepts: Accepts,
    *,
    names: Names = AS_THEY_ARE,
    shard: Shard | None = None,
    limit: int | None = None,
) -> Survey:
    """Read a table once and look up what it asks: all of its rows or the first `limit`, of which a
    shard has its part.

    Raises what `read_header` and `scan` raise for a file that cannot be read as a table.
    """
    columns = read_header(table, names)
    digest = sha256(table)
    count = sum(1 for _ in scan(table, names)) if shard is not None else 2**63
    chosen = range(count)[:limit]
    if shard is not None:
        chosen = shard_rows(len(chosen), shard)
    survey = Survey(table, chosen, columns, names, digest)
    try:
        records = enumerate(told(scan(table, names), f"rows of {table} are read"))
        for batch in in_batches(records, LOOK_UP):
            survey.rows += len(batch)
            rows = [
                parse_row(number, record, names) for number, record in batch if number in chosen
            ]
            _look_up(survey, rows, store, key_of, accepts)
    except BaseException:
        survey.close()
        raise
    survey.chosen = range(survey.rows)[chosen.start : chosen.stop]
    return survey


def _look_up(
    survey: Survey, rows: list[Row], store: AnswerStore, key_of: KeyMaker, accepts: Accepts
) -> None:
    keys = [NO_KEY if row.question is None else key_of(row.question) for row in rows]
    answers = store.find_all(keys)
    for row, key in zip(rows, keys):
        if row.notes:
            survey.notes.update(dict.fromkeys(row.notes))
        if row.question is None:
            survey.add(NO_KEY, ERROR)
            survey.unreadable += 1
            if row.error is not None and not survey.complaint:
                survey.complaint = f"line {row.line}: {row.error.code}: {row.error.message}"
        else:
            kept = answers.get(key)
            is_answer = kept is not None and accepts(row.question, kept)
            if row.question.documents and not is_answer:
                survey.with_documents = survey.with_documents or row.line
            survey.add(key, kept.status if kept is not None and is_answer else MISSING)
