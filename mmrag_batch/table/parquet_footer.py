"""What a Parquet file says of its columns (parquet.thrift, in Thrift's compact protocol).

pyarrow says it as well, but a damaged footer ends the process there: a C++ exception that nobody
catches (pyarrow 26).
"""

from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"PAR1"
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
ROW_GROUPS, COLUMNS, META, VALUES, UNPACKED = 4, 1, 3, 5, 6
"""Numbers of fields, each within the one before; the last two are both in META."""


class Chunk(NamedTuple):
    """A column in a row group: its values, those of lists one by one, and its bytes unpacked."""

    values: int
    unpacked: int


def read_chunks(path: Path) -> list[list[Chunk]]:
    """The columns of each row group. Raises ValueError for a footer that is none."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(size - 8, 0))
        length = int.from_bytes(stream.read(4), "little")
        if stream.read() != MAGIC or length > size - 8:
            raise ValueError("no footer")
        stream.seek(size - 8 - length)
        footer = _Thrift(stream.read(length))
    try:
        groups = footer.struct()[ROW_GROUPS]
        return [
            [Chunk(one[META][VALUES], one[META][UNPACKED]) for one in group[COLUMNS]]
            for group in groups
        ]
    except (LookupError, TypeError, RecursionError):
        raise ValueError("a footer that cannot be read") from None


class _Thrift:
    """Reads values one after the other; texts are passed over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self) -> dict[int, Any]:
        """The fields by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            kind &= 15
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        if kind in (DOUBLE, BINARY):
            length = 8 if kind == DOUBLE else self._number()
            self._at += length
            return None
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._number()
            return [self._value(head & 15) for _ in range(count)]
        if kind == MAP:
            count = self._number()
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(count)]
        return self.struct() if kind == STRUCT else self._integer()

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _number(self) -> int:
        """A varint: seven bits a byte, the lowest first."""
        number = shift = 0
        while (byte := self._byte()) & 128:
            number, shift = number | (byte & 127) << shift, shift + 7
        return number | byte << shift

    def _integer(self) -> int:
        """A signed one, in zigzag."""
        number = self._number()
        return number >> 1 ^ -(number & 1)
