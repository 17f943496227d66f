"""Tables in Parquet, by pyarrow; they are read and not written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from mmrag_batch.errors import InputError, UnavailableError
from mmrag_batch.table.record import Record
from mmrag_batch.table.text import check_file

BATCH = 256
"""Rows decoded at once."""


class Parquet:
    """The format."""

    suffixes = (".parquet",)
    writer = None

    def columns(self, path: Path) -> Sequence[str]:
        """Those of the schema."""
        with _open(path) as file:
            return tuple(file.schema_arrow.names)

    def records(self, path: Path) -> Iterator[Record]:
        """The rows, a batch at a time."""
        return _records(path)


def _records(path: Path) -> Iterator[Record]:
    with _open(path) as file:
        batches = (batch.to_pylist() for batch in file.iter_batches(BATCH))
        for line, cells in enumerate(chain.from_iterable(batches), start=1):
            yield Record(line, cells)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
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
