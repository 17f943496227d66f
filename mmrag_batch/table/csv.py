"""Tables in CSV (RFC 4180), perhaps gzipped: with commas, and as others write it, with semicolons,
tabs or bars, Excel's `sep=` line and its columns without a name."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from mmrag_batch.errors import InputError
from mmrag_batch.records import Problem
from mmrag_batch.table.names import count_known, find_columns
from mmrag_batch.table.record import MAX_CELL, REQUIRED, Record, check_columns_differ
from mmrag_batch.table.text import open_text, read_lines
from mmrag_batch.table.written import encode, to_text

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEP = re.compile(r'"?sep=([^"\w])"?\r?\n?')
CsvRow = tuple[int, list[str] | Problem]
"""The line where it starts, and its cells."""


class Csv:
    """The format: written with a delimiter, read with the one that a file has."""

    def __init__(self, delimiter: str, *suffixes: str) -> None:
        self._delimiter = delimiter
        self.suffixes = suffixes

    def columns(self, path: Path) -> Sequence[str]:
        """What the header names."""
        return _header(path, self._rows(path))[0]

    def records(self, path: Path) -> Iterator[Record]:
        """The rows below it."""
        return _records(path, self._rows(path))

    def describe(self, path: Path) -> str:
        """What stands between the cells of a file."""
        with open_text(path) as stream:
            delimiter, _, _ = _begin(read_lines(path, stream), self._delimiter)
        return f"CSV with {DELIMITERS.get(delimiter, repr(delimiter))}"

    def writer(self, columns: Sequence[str], table: Path | None = None) -> "CsvWriter":  # noqa: ARG002
        """Writes rows."""
        return CsvWriter(columns, self._delimiter)

    def _rows(self, path: Path) -> Iterator[CsvRow]:
        return _rows(path, self._delimiter)


class CsvWriter:
    """Rows with LF at their ends, each cell a text."""

    def __init__(self, columns: Sequence[str], delimiter: str = ",") -> None:
        self._columns = columns
        self._line = _Line()
        # The csv module quotes a lone CR only if its own line end has one; see _Line.
        self._csv = csv.writer(self._line, delimiter=delimiter, lineterminator="\r\n")
        self.header = self._encode(columns)

    def row(self, values: Mapping[str, object]) -> bytes:
        """One row, with its line end."""
        return self._encode([to_text(values.get(name)) for name in self._columns])

    def end(self) -> bytes:
        """Nothing stands after the last row."""
        return b""

    def _encode(self, cells: Sequence[str]) -> bytes:
        self._csv.writerow(cells)
        return encode(self._line.text)


class _Line:
    """What `csv.writer` wrote last, with LF at its end in place of CR LF."""

    text = ""

    def write(self, row: str) -> None:
        self.text = row.removesuffix("\r\n") + "\n"


def _records(path: Path, rows: Iterator[CsvRow]) -> Iterator[Record]:
    columns, unnamed = _header(path, rows)
    check_columns_differ(path, columns)
    width = len(columns)
    for line, cells in rows:
        if isinstance(cells, Problem):
            yield Record(line, {}, cells)
        elif width <= len(cells) <= width + unnamed and not any(cells[width:]):
            yield Record(line, dict(zip(columns, cells)))
        else:
            message = f"expected {width} cells, as the header has, not {len(cells)}"
            yield Record(line, dict(zip(columns, cells)), Problem("bad_row", message))


def _header(path: Path, rows: Iterator[CsvRow]) -> tuple[list[str], int]:
    """The columns, and how many after them have no name: Excel writes those that were used once."""
    _, cells = next(rows, (0, []))
    if isinstance(cells, Problem):
        raise InputError(f"{path}: the header cannot be read: {cells.message}.")
    named = len(cells)
    while named > 1 and not cells[named - 1].strip():
        named -= 1
    return cells[:named], len(cells) - named


def _rows(path: Path, usual: str) -> Iterator[CsvRow]:
    """Every row that is not blank, header first."""
    csv.field_size_limit(MAX_CELL)
    with open_text(path) as stream:
        lines = read_lines(path, stream)
        delimiter, skipped, first = _begin(lines, usual)
        reader = csv.reader(chain(first, lines), delimiter=delimiter, strict=True)
        while True:
            line = skipped + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # An overlong cell within one line leaves the reader at the next row. Over several
                # lines it is most likely a quote that was never closed, and the rows are lost.
                if skipped + reader.line_num > line or "field limit" not in str(error):
                    raise InputError(
                        f"{path}, line {line}: a quote that opens in this row is not closed as it "
                        f"should be ({error}). Close it, or double a quote that is part of a text."
                    ) from None
                yield line, Problem("bad_row", f"a cell is over {MAX_CELL:,} characters")
            else:
                if cells:
                    yield line, cells


def _begin(lines: Iterator[str], usual: str) -> tuple[str, int, list[str]]:
    """The delimiter, how many lines stand before the header, and its first line."""
    given = None
    for number, line in enumerate(lines):
        if not number and (match := _SEP.fullmatch(line)):
            given = match[1]
        elif line.strip("\r\n"):
            return given or _find_delimiter(line, usual), number, [line]
    return given or usual, 0, []


def _find_delimiter(header: str, usual: str) -> str:
    """What parts a header into columns that tables have; in doubt the usual one, if it parts it."""
    headers = {
        delimiter: next(csv.reader([header], delimiter=delimiter), [])
        for delimiter in (usual, *(other for other in DELIMITERS if other != usual))
    }

    def worth(delimiter: str) -> tuple[bool, int, int]:
        columns = headers[delimiter]
        is_table = REQUIRED in columns or REQUIRED in find_columns(columns)
        return is_table, count_known(columns), len(columns) if len(headers[usual]) == 1 else 0

    return max(headers, key=worth)
