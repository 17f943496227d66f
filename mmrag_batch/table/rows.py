"""The input table: rows in, `Row` records out, lazily and with flat memory.

A fault of the file (`InputError`) ends a run before it starts; a fault of one row becomes
`Row.error`, and the row goes on to the output.
"""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmrag_batch.errors import InputError, RowError
from mmrag_batch.records import Problem, Row
from mmrag_batch.table.cells import parse_question
from mmrag_batch.table.formats import read_header, read_records
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.record import Record
from mmrag_batch.table.values import is_empty

__all__ = ["parse_row", "read_header", "read_records", "read_rows", "scan"]


def scan(path: Path, names: Names = AS_THEY_ARE) -> Iterator[Record]:
    """The records of a whole table, read to its end even where a caller wants less of them.

    Raises InputError for what would otherwise end a run half way: quoting, encoding, a truncated
    file, and at the end for an id that two rows share. Takes 8 bytes of memory a row with an id.
    """
    import numpy as np  # reading the settings of a training reads no table

    hashes = array("q")
    for record in read_records(path, names):
        id_cell = record.cells.get("id")
        if not is_empty(id_cell):
            hashes.append(hash(str(id_cell)))
        yield record
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if repeated.size:
        _check_ids(path, names, frozenset(repeated.tolist()))


def read_rows(
    path: Path, only: Iterable[int] | None = None, *, names: Names = AS_THEY_ARE
) -> Iterator[Row]:
    """The rows of a table, parsed one by one. A row that cannot be used carries an `error`.

    `names` are what the table calls our columns. `only` names the rows to parse, in ascending
    order; the others are passed over. Raises as `read_header` does.
    """
    records = enumerate(read_records(path, names))
    if only is None:
        yield from (parse_row(number, record, names) for number, record in records)
        return
    for wanted_number in only:
        for number, record in records:
            if number == wanted_number:
                yield parse_row(number, record, names)
                break


def parse_row(number: int, record: Record, names: Names = AS_THEY_ARE) -> Row:
    """The row that a record is: with a question, or with an error. `names` are those of its
    documents' keys."""
    id_cell = record.cells.get("id")
    row = Row(
        number=number,
        line=record.line,
        id=str(number) if is_empty(id_cell) else str(id_cell),
        cells=record.cells,
        error=record.problem,
    )
    if row.error is None:
        try:
            row.question = parse_question(record.cells, names, row.notes)
        except RowError as error:
            row.error = Problem(error.code, str(error))
    return row


def _check_ids(path: Path, names: Names, repeated_hashes: frozenset[int]) -> None:
    """Raise InputError if two ids are equal, and not just their hashes."""
    lines: dict[str, int] = {}
    for record in read_records(path, names):
        id_cell = record.cells.get("id")
        if is_empty(id_cell) or hash(str(id_cell)) not in repeated_hashes:
            continue
        first = lines.setdefault(str(id_cell), record.line)
        if first != record.line:
            raise InputError(
                f"{path}: lines {first} and {record.line} have the same id {str(id_cell)!r}. "
                "Give every row its own id, or drop the column."
            )
