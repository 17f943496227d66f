"""Which formats a table may have, told by its suffix.

Adding a format is a module with a class and an entry of `FORMATS`, or, from elsewhere, a call of
`add_format`. Every reader streams, so memory does not grow with the file. Only the structure of the
file is judged there; what a cell means is up to `cells.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mmrag_batch.errors import InputError, OutputError
from mmrag_batch.table.csv import Csv
from mmrag_batch.table.jsonl import JsonLines
from mmrag_batch.table.names import AS_THEY_ARE, COLUMNS, Names, find_columns
from mmrag_batch.table.parquet import Parquet
from mmrag_batch.table.record import Cells, Record, check_columns


class Writer(Protocol):
    """How the rows of a table with certain columns are written: `header`, then `row` for each, then
    `end`. Bytes may be held back until a later row or the end."""

    @property
    def header(self) -> bytes:
        """What stands before the first row."""
        ...

    def row(self, values: Mapping[str, object]) -> bytes:
        """One row, with its end; bytes depend on values alone. A column may be absent."""
        ...

    def end(self) -> bytes:
        """What is held back, and what stands after the last row."""
        ...


class TableFormat(Protocol):
    """A format of tables. Both readers raise MissingError and InputError for files that they cannot
    read, and UnavailableError for a package that is not there."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """How the names of its files end; with `.gz` at the end, an output is gzipped."""
        ...

    @property
    def writer(self) -> "Callable[[Sequence[str], Path | None], Writer] | None":
        """Makes a writer of rows with certain columns, those of an input table among them, whose
        types a format may keep; None for a format that is only read."""
        ...

    def columns(self, path: Path) -> Sequence[str]:
        """The columns, in order."""
        ...

    def records(self, path: Path) -> Iterator[Record]:
        """The rows, one by one. Blank lines are none."""
        ...


FORMATS: list[TableFormat] = [
    Csv(",", ".csv", ".csv.gz"),
    Csv("\t", ".tsv", ".tsv.gz"),
    JsonLines(),
    Parquet(),
]


def add_format(table_format: TableFormat) -> None:
    """Let tables with its suffixes be read, and written if it has a writer."""
    FORMATS.insert(0, table_format)


def read_header(path: Path, names: Names = AS_THEY_ARE) -> tuple[str, ...]:
    """The columns of a table as it calls them, in order; `names` are those of ours in it. For JSON
    Lines: every key of any row, as first met.

    Raises MissingError (no such file), UnavailableError (Parquet without pyarrow) and InputError
    (an unknown suffix, an empty or damaged file, duplicate columns, no `question_text`).
    """
    columns = tuple(_reader(path).columns(path))
    check_columns(path, columns, names)
    return columns


def read_records(path: Path, names: Names = AS_THEY_ARE) -> Iterator[Record]:
    """The rows of a table, one by one. Raises as `read_header` does, but for JSON Lines, whose
    columns are known at the end."""
    table_format = _reader(path)
    found: Mapping[str, str] | None = None
    if isinstance(table_format, Csv | Parquet):  # each row has all columns
        columns = table_format.columns(path)
        check_columns(path, columns, names)
        found = find_columns(columns, names)
    is_plain = not isinstance(table_format, Parquet)
    for record in table_format.records(path):
        renamed = find_columns(tuple(record.cells), names) if found is None else found
        if is_plain and not renamed:
            yield record
        else:
            yield record._replace(cells=Cells(record.cells, renamed))


def used_columns(columns: Sequence[str], names: Names = AS_THEY_ARE) -> dict[str, str]:
    """Which columns of a table are ours: what it calls each."""
    found = find_columns(columns, names)
    used = {name: name for name in columns if name in COLUMNS and name not in found}
    return used | {name: theirs for name, theirs in found.items() if name in COLUMNS}


def read_any(path: Path) -> Iterator[Record]:
    """The rows of a table that need not be one of questions, as it calls its columns."""
    return _reader(path).records(path)


def describe(path: Path, columns: Sequence[str], names: Names = AS_THEY_ARE) -> str:
    """What a table was taken for: its format, its columns that are ours, and how many others."""
    table_format = _reader(path)
    ours = [
        f"`{name}`" if name == theirs else f"{theirs!r} as `{name}`"
        for name, theirs in used_columns(columns, names).items()
    ]
    what = f"{table_format.describe(path)}, " if isinstance(table_format, Csv) else ""
    return f"{what}{len(columns)} columns, of which are used: {', '.join(ours)}."


def open_writer(path: Path, columns: Sequence[str], table: Path | None = None) -> Writer:
    """A writer for a file of that name. Raises OutputError for a suffix that cannot be written."""
    return find_writer(path)(columns, table)


def _reader(path: Path) -> TableFormat:
    if (table_format := _find(path)) is None:
        suffixes = ", ".join(suffix for one in FORMATS for suffix in one.suffixes)
        raise InputError(f"{path}: the input must end in one of {suffixes}.")
    return table_format


def find_writer(path: Path) -> Callable[[Sequence[str], Path | None], Writer]:
    """What makes a writer for a file of that name. Raises as `open_writer` does."""
    table_format = _find(path)
    if table_format is None or table_format.writer is None:
        suffixes = ", ".join(suffix for one in FORMATS if one.writer for suffix in one.suffixes)
        raise OutputError(f"{path}: the output must end in one of {suffixes}.")
    return table_format.writer


def _find(path: Path) -> TableFormat | None:
    name = path.name.lower()
    return next((one for one in FORMATS if name.endswith(one.suffixes)), None)
