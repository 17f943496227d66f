"""Tables in CSV (RFC 4180), perhaps gzipped."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmrag_batch.errors import InputError
from mmrag_batch.records import Problem
from mmrag_batch.table.record import Record, check_columns
from mmrag_batch.table.text import encode, open_text, read_lines, to_json

MAX_CELL = 10 * 2**20
"""Most characters in one cell."""
CsvRow = tuple[int, list[str] | Problem]
"""The line where it starts, and its cells."""


class Csv:
    """The format."""

    suffixes = (".csv", ".csv.gz")

    def columns(self, path: Path) -> Sequence[str]:
        """What the header names."""
        return _header(path, _rows(path))

    def records(self, path: Path) -> Iterator[Record]:
        """The rows below it."""
        return _records(path)

    def writer(self, columns: Sequence[str]) -> "CsvWriter":
        """Writes rows."""
        return CsvWriter(columns)


class CsvWriter:
    """Rows with LF at their ends; what is no text is written as JSON, and None as nothing."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._line = _Line()
        # The csv module quotes a lone CR only if its own line end has one; see _Line.
        self._csv = csv.writer(self._line, lineterminator="\r\n")
        self.header = self._encode(columns)

    def row(self, values: Mapping[str, object]) -> bytes:
        """One row, with its line end."""
        return self._encode([_cell(values.get(name)) for name in self._columns])

    def _encode(self, cells: Sequence[str]) -> bytes:
        self._csv.writerow(cells)
        return encode(self._line.text)


class _Line:
    """What `csv.writer` wrote last, with LF at its end in place of CR LF."""

    text = ""

    def write(self, row: str) -> None:
        self.text = row.removesuffix("\r\n") + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)


def _records(path: Path) -> Iterator[Record]:
    rows = _rows(path)
    columns = check_columns(path, _header(path, rows))
    width = len(columns)
    for line, cells in rows:
        if isinstance(cells, Problem):
            yield Record(line, {}, cells)
        elif len(cells) == width:
            yield Record(line, dict(zip(columns, cells)))
        else:
            message = f"expected {width} cells, as the header has, not {len(cells)}"
            yield Record(line, dict(zip(columns, cells)), Problem("bad_row", message))


def _header(path: Path, rows: Iterator[CsvRow]) -> list[str]:
    _, cells = next(rows, (0, []))
    if isinstance(cells, Problem):
        raise InputError(f"{path}: the header cannot be read: {cells.message}.")
    return cells


def _rows(path: Path) -> Iterator[CsvRow]:
    """Every row that is not blank, header first."""
    csv.field_size_limit(MAX_CELL)
    with open_text(path) as stream:
        reader = csv.reader(read_lines(path, stream), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # An overlong cell within one line leaves the reader at the next row. Over several
                # lines it is most likely a quote that was never closed, and the rows are lost.
                if reader.line_num > line or "field limit" not in str(error):
                    raise InputError(
                        f"{path}, line {line}: a quote that opens in this row is not closed as it "
                        f"should be ({error}). Close it, or double a quote that is part of a text."
                    ) from None
                yield line, Problem("bad_row", f"a cell is over {MAX_CELL:,} characters")
            else:
                if cells:
                    yield line, cells
