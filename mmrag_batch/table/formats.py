"""The raw records of a table, whatever its format: CSV, gzipped CSV, JSON Lines or Parquet.

Every reader streams, so memory does not grow with the file. Only the structure of the file is
judged here; what a cell means is up to `cells.py`.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mmrag_batch.errors import InputError, UnavailableError
from mmrag_batch.records import Problem
from mmrag_batch.table.text import check_file, open_text, read_lines

REQUIRED = "question_text"
SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".parquet")
MAX_CELL = 10 * 2**20
"""Most characters in one CSV cell."""
MAX_DEPTH = 64
PARQUET_BATCH = 256
"""Rows decoded at once."""
CsvRow = tuple[int, list[str] | Problem]
"""The line where it starts, and its cells."""


class Record(NamedTuple):
    """One row as it was read. `line` is where it starts; in Parquet, the row's number from 1.

    A record with a `problem` is a row whose structure is broken; `cells` hold what could be read.
    """

    line: int
    cells: dict[str, object]
    problem: Problem | None = None


def read_header(path: Path) -> tuple[str, ...]:
    """The columns of a table, in order. For JSON Lines: every key of any row, as first met.

    Raises MissingError (no such file), UnavailableError (Parquet without pyarrow) and InputError
    (an unknown suffix, an empty or damaged file, duplicate columns, no `question_text`).
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        with _open_parquet(path) as file:
            return _check_columns(path, file.schema_arrow.names)
    if suffix == ".jsonl":
        names = dict.fromkeys(name for record in _jsonl_records(path) for name in record.cells)
        return _check_columns(path, names)
    return _csv_header(path, _csv_rows(path))


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a table, one by one. Blank lines are not rows. Raises as `read_header` does."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        return _parquet_records(path)
    if suffix == ".jsonl":
        return _jsonl_records(path)
    return _csv_records(path)


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path}: the input must end in one of {', '.join(SUFFIXES)}.")


def _check_columns(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    columns = tuple(names)
    if not columns:
        raise InputError(f"{path} is empty: it has no columns. Write a `{REQUIRED}` column.")
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if twice:
        raise InputError(
            f"{path}: duplicate column {', '.join(map(repr, twice))}. Rename all but one."
        )
    if REQUIRED not in columns:
        near = get_close_matches(REQUIRED, columns, n=1)
        hint = f"Did you mean {near[0]!r}? Rename it." if near else "Add or rename one."
        found = ", ".join(map(repr, columns))
        raise InputError(f"{path}: no column {REQUIRED!r}. Found: {found}. {hint}")
    return columns


# CSV


def _csv_records(path: Path) -> Iterator[Record]:
    rows = _csv_rows(path)
    columns = _csv_header(path, rows)
    width = len(columns)
    for line, cells in rows:
        if isinstance(cells, Problem):
            yield Record(line, {}, cells)
        elif len(cells) == width:
            yield Record(line, dict(zip(columns, cells)))
        else:
            found = f"expected {width} cells, as the header has, not {len(cells)}"
            yield Record(line, dict(zip(columns, cells)), Problem("bad_row", found))


def _csv_header(path: Path, rows: Iterator[CsvRow]) -> tuple[str, ...]:
    _, cells = next(rows, (0, []))
    if isinstance(cells, Problem):
        raise InputError(f"{path}: the header cannot be read: {cells.message}.")
    return _check_columns(path, cells)


def _csv_rows(path: Path) -> Iterator[CsvRow]:
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


# JSON Lines


def _jsonl_records(path: Path) -> Iterator[Record]:
    with open_text(path) as stream:
        for line, text in enumerate(read_lines(path, stream), start=1):
            if not text.isspace():
                yield _jsonl_record(line, text)


def _jsonl_record(line: int, text: str) -> Record:
    def broken(what: str) -> Record:
        return Record(line, {}, Problem("bad_row", what))

    try:
        cells = json.loads(text)
    except (ValueError, RecursionError) as error:
        return broken(f"not valid JSON: {error}")
    if not isinstance(cells, dict):
        return broken("expected a JSON object")
    if _is_deep(cells):
        return broken(f"nested over {MAX_DEPTH} levels deep")
    return Record(line, cells)


def _is_deep(value: object) -> bool:
    """Whether JSON is nested so deep that writing it again could exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        lists = [item for item in level if isinstance(item, list)]
        lists += [list(item.values()) for item in level if isinstance(item, dict)]
        level = [item for items in lists for item in items]
        if not level:
            return False
    return True


# Parquet


def _parquet_records(path: Path) -> Iterator[Record]:
    with _open_parquet(path) as file:
        _check_columns(path, file.schema_arrow.names)
        batches = (batch.to_pylist() for batch in file.iter_batches(PARQUET_BATCH))
        for line, cells in enumerate(chain.from_iterable(batches), start=1):
            yield Record(line, cells)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    check_file(path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnavailableError(
            f"{path}: Parquet needs pyarrow. Run `pip install 'mmrag-batch[parquet]'`."
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no Parquet file, or a damaged one: {error}") from error
