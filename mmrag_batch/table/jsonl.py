"""Tables in JSON Lines: an object a line (jsonlines.org)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmrag_batch.records import Problem
from mmrag_batch.table.literals import has_too_many
from mmrag_batch.table.record import Record
from mmrag_batch.table.text import open_text, read_lines
from mmrag_batch.table.written import encode, to_json

MAX_DEPTH = 64
MAX_VALUES = 1_000_000
"""Most values in a line: columns that only pass through may hold vectors."""


class JsonLines:
    """The format."""

    suffixes = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

    def columns(self, path: Path) -> Sequence[str]:
        """Every key of any row, as first met."""
        return tuple(dict.fromkeys(name for record in _records(path) for name in record.cells))

    def records(self, path: Path) -> Iterator[Record]:
        """The lines that are not blank."""
        return _records(path)

    def writer(
        self,
        columns: Sequence[str],
        table: Path | None = None,  # noqa: ARG002
    ) -> "JsonLinesWriter":
        """Writes rows."""
        return JsonLinesWriter(columns)


class JsonLinesWriter:
    """Objects with the keys that a row has, in the order of the columns."""

    header = b""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def row(self, values: Mapping[str, object]) -> bytes:
        """One row, with its line end."""
        cells = {name: values[name] for name in self._columns if name in values}
        return encode(to_json(cells) + "\n")

    def end(self) -> bytes:
        """Nothing stands after the last row."""
        return b""


def _records(path: Path) -> Iterator[Record]:
    with open_text(path) as stream:
        for line, text in enumerate(read_lines(path, stream), start=1):
            if not text.isspace():
                yield _record(line, text)


def _record(line: int, text: str) -> Record:
    def bad_record(message: str) -> Record:
        return Record(line, {}, Problem("bad_row", message))

    if has_too_many(text, MAX_VALUES):
        return bad_record(f"over {MAX_VALUES:,} values")
    try:
        cells = json.loads(text)
    except (ValueError, RecursionError) as error:
        return bad_record(f"not valid JSON: {error}")
    if not isinstance(cells, dict):
        return bad_record("expected a JSON object")
    if _is_deep(cells):
        return bad_record(f"nested over {MAX_DEPTH} levels deep")
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
