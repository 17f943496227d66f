"""Parquet, written row group by row group: the columns of the input with the types that they have
there, and those of the answer. The same rows give the same bytes."""

from collections.abc import Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrag_batch.table.arrow import ArrowCell
from mmrag_batch.table.jsonl import JsonLines
from mmrag_batch.table.written import as_utf8, to_text

TYPES = {
    "prediction_index": pa.int64(),
    "confidence": pa.float64(),
    "confidence_per_token": pa.float64(),
    "choice_probabilities": pa.list_(pa.float64()),
    "evidence": pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64())])),
}
"""Of the columns of an answer that are no texts."""
BATCH_ROWS = 64
GROUP_ROWS = 2**14
GROUP_BYTES = 32 * 2**20
INT64 = range(-(2**63), 2**63)


class ParquetWriter:
    """Rows; a row group is written when it has GROUP_ROWS rows or about GROUP_BYTES."""

    header = b""

    def __init__(self, columns: Sequence[str], table: Path | None) -> None:
        self._columns = columns
        self._table = table
        self._sink = _Sink()
        self._schema: Any = None
        self._writer: Any = None
        self._rows: list[Mapping[str, object]] = []
        self._batches: list[Any] = []

    def row(self, values: Mapping[str, object]) -> bytes:
        """What is written once this row is in; most rows wait for others."""
        self._rows.append(values)
        if len(self._rows) >= BATCH_ROWS:
            self._convert()
            rows = sum(batch.num_rows for batch in self._batches)
            if rows >= GROUP_ROWS or sum(batch.nbytes for batch in self._batches) >= GROUP_BYTES:
                self._write()
        return self._sink.take()

    def end(self) -> bytes:
        """The last rows, and where all of them lie."""
        self._convert()
        self._write()
        self._writer.close()
        return self._sink.take()

    def _convert(self) -> None:
        """The rows that wait, as columns."""
        if self._schema is None:
            types = column_types(self._table) | TYPES
            self._schema = pa.schema(
                [(as_utf8(name), types.get(name, pa.string())) for name in self._columns]
            )
        columns = [
            _array([row.get(name) for row in self._rows], field.type)
            for name, field in zip(self._columns, self._schema)
        ]
        self._batches.append(pa.record_batch(columns, schema=self._schema))
        self._rows = []

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, self._schema)
        group = pa.Table.from_batches(self._batches, self._schema)
        if group.num_rows:
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._batches = []


def column_types(table: Path | None) -> dict[str, Any]:
    """The types of a table's columns, but for those that are texts."""
    if table is None or table.name.lower().endswith(".parquet"):
        schema = pq.read_schema(table) if table is not None else ()
        return {field.name: field.type for field in schema}
    suffixes = JsonLines.suffixes
    return _json_types(table) if table.name.lower().endswith(suffixes) else {}


def _json_types(table: Path) -> dict[str, Any]:
    """A column of numbers, or of true and false, is one; the others are texts, or JSON."""
    kinds: dict[str, set[type]] = {}
    for record in JsonLines().records(table):
        for name, cell in record.cells.items():
            is_large = isinstance(cell, int) and cell not in INT64
            kinds.setdefault(name, set()).add(str if is_large else type(cell))
    known = {
        frozenset({bool}): pa.bool_(),
        frozenset({int}): pa.int64(),
        frozenset({float}): pa.float64(),
        frozenset({int, float}): pa.float64(),
    }
    types = {name: known.get(frozenset(kind - {type(None)})) for name, kind in kinds.items()}
    return {name: kind for name, kind in types.items() if kind is not None}


def _array(values: Sequence[object], kind: Any) -> Any:
    """A column of cells."""
    if any(isinstance(value, ArrowCell) for value in values):
        nothing = pa.nulls(1, kind)
        parts = [value.array if isinstance(value, ArrowCell) else nothing for value in values]
        return pa.concat_arrays(parts)
    if kind == pa.string():
        values = [value if value is None else as_utf8(to_text(value)) for value in values]
    return pa.array(values, kind)


class _Sink(RawIOBase):
    """A file that keeps what is written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        """What was written since it was last taken."""
        data = bytes(self._data)
        self._data.clear()
        return data
