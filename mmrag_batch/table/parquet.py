"""Tables in Parquet, by pyarrow: read a batch at a time, within bounds that a small file cannot
break which unpacks to a large one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrag_batch.errors import InputError, UnavailableError
from mmrag_batch.machine import install
from mmrag_batch.records import Problem
from mmrag_batch.table.parquet_footer import read_chunks
from mmrag_batch.table.record import MAX_CELL, Record, check_columns_differ
from mmrag_batch.table.text import MAX_RATIO, check_file

BATCH_ROWS = 256
BATCH_BYTES = 16 * 2**20
"""Most rows, and about as many bytes, decoded at once."""
UNCHECKED = 256 * 2**20
"""Bytes that any file may unpack to. A column of equal values packs better than text does."""


class Parquet:
    """The format."""

    suffixes = (".parquet",)

    def columns(self, path: Path) -> Sequence[str]:
        """Those of the schema."""
        with _open(path) as file:
            return tuple(file.schema_arrow.names)

    def records(self, path: Path) -> Iterator[Record]:
        """The rows, a batch at a time."""
        return _records(path)

    def writer(self, columns: Sequence[str], table: Path | None = None) -> Any:
        """Writes rows, with the types that the input table has."""
        with _needing_pyarrow("The output"):
            from mmrag_batch.table.parquet_writer import ParquetWriter
        return ParquetWriter(columns, table)


def _records(path: Path) -> Iterator[Record]:
    with _open(path) as plain:
        from mmrag_batch.table.arrow import check_type, sizes

        kinds = {field.name: field.type for field in plain.schema_arrow}
        check_columns_differ(path, plain.schema_arrow.names)
        for name, kind in kinds.items():
            check_type(f"{path}: column {name!r}", kind)
        most = max(UNCHECKED, MAX_RATIO * path.stat().st_size)
        _check_size(path, plain, most)
        line = unpacked = 0
        with _reopen(path, plain) as file:
            for batch in file.iter_batches(_batch_rows(plain)):
                taken = [sizes(column) for column in batch.columns]
                cells = [_cells(*one) for one in zip(batch.columns, kinds.values(), taken)]
                for number, size in enumerate(sum(taken).tolist() if taken else ()):
                    line, unpacked = line + 1, unpacked + size
                    if unpacked > most:
                        raise _too_large(path)
                    long = [name for name, each in zip(kinds, taken) if each[number] > MAX_CELL]
                    row = {
                        name: None if name in long else cell(number)
                        for name, cell in zip(kinds, cells)
                    }
                    message = (
                        f"column {', '.join(map(repr, long))}: a cell is over {MAX_CELL:,} bytes"
                    )
                    yield Record(line, row, Problem("bad_row", message) if long else None)


def _cells(column: Any, kind: Any, taken: Any) -> Callable[[int], object]:
    """What makes the cell of a row: all at once where they are small."""
    from mmrag_batch.table.arrow import is_plain, make_cell

    if is_plain(kind) and taken.sum() <= MAX_CELL:
        return column.to_pylist().__getitem__  # type: ignore[no-any-return]
    return lambda number: make_cell(column, number, kind)


def _batch_rows(file: Any) -> int:
    """How many rows are decoded at once: by what they take on average."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    average = max((one.total_byte_size // max(one.num_rows, 1) for one in groups), default=0)
    return int(min(max(BATCH_BYTES // max(average, 1), 1), BATCH_ROWS))


def _check_size(path: Path, file: Any, most: int) -> None:
    """Raise InputError where the file itself says that it unpacks to more than `most` bytes: by its
    pages, or by how many values its lists have."""
    kinds = map(file.schema.column, range(len(file.schema)))
    in_lists = [kind.max_repetition_level > 0 for kind in kinds]
    total = 0
    for chunks in read_chunks(path):
        for is_in_list, chunk in zip(in_lists, chunks):
            total += max(chunk.unpacked, 4 * chunk.values * is_in_list)
    if total > most:
        raise _too_large(path)


def _too_large(path: Path) -> InputError:
    return InputError(
        f"{path} unpacks to over {MAX_RATIO} times its size, as no table should. If it is one, "
        "write it as .jsonl, or in parts."
    )


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    check_file(path)
    with _needing_pyarrow(str(path)):
        import pyarrow
        import pyarrow.parquet
    # Damage can turn up as anything that pyarrow makes of it.
    damage = (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError, MemoryError)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except damage as error:
        raise InputError(f"{path} is no Parquet file, or a damaged one: {error}") from error


def _reopen(path: Path, file: Any) -> Any:
    """The file, read so that a text which many rows share is in memory once."""
    import pyarrow.parquet

    kinds = map(file.schema.column, range(len(file.schema)))
    shared = [kind.path for kind in kinds if kind.physical_type == "BYTE_ARRAY"]
    return pyarrow.parquet.ParquetFile(path, metadata=file.metadata, read_dictionary=shared)


@contextmanager
def _needing_pyarrow(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UnavailableError(
            f"{what}: Parquet needs pyarrow. Run `{install('parquet')}`."
        ) from None
