"""Arrow's columns as cells: what Python and JSON have as it is, all else as cells that know their
type, and how much each cell takes before it is made."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrag_batch.errors import InputError
from mmrag_batch.table.record import Typed

_MOMENT = re.compile(r"(?:(\S+) )?([\d:]+)(?:\.(\d*?)0*)?(?:(Z|[+-]\d\d)(\d\d)?)?")
FIXED = 8
"""Bytes that a value takes which has no length of its own."""


class ArrowCell(Typed):
    """A cell: an array of one value, of its column's type."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def plain(self) -> object:
        return _plain(self.array[0])

    def __str__(self) -> str:
        return str(self.plain)


def check_type(column: str, kind: Any) -> None:
    """Raise InputError for a type with two fields of one name, which no value can be read from."""
    if pa.types.is_struct(kind) and len({field.name for field in kind}) < kind.num_fields:
        raise InputError(f"{column} has two fields of one name ({kind}). Rename all but one.")
    for index in range(kind.num_fields):
        check_type(column, kind.field(index).type)


def make_cell(array: Any, number: int, kind: Any) -> object:
    """The cell at a place of a column of that type."""
    if is_plain(kind):
        return array[number].as_py()
    value = array.slice(number, 1)
    return (
        ArrowCell(value.cast(kind) if value.type != kind else value) if value[0].is_valid else None
    )


def is_plain(kind: Any) -> Any:
    """Whether JSON has every value of a type."""
    if _is_list(kind) or pa.types.is_struct(kind):
        return all(is_plain(kind.field(index).type) for index in range(kind.num_fields))
    is_number = pa.types.is_integer(kind) or kind in (pa.float32(), pa.float64())
    return is_number or _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _is_list(kind: Any) -> Any:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_text(kind: Any) -> Any:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: Any) -> Any:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _plain(scalar: Any) -> Any:
    """A value in the types of JSON, and bytes; dates and decimals as texts, so that none is too
    large for Python."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ExtensionScalar):
        return str(scalar.as_py()) if kind.extension_name == "arrow.uuid" else _plain(scalar.value)
    if pa.types.is_dictionary(kind):
        return _plain(scalar.value)
    if pa.types.is_map(kind):
        pairs = [[_plain(entry["key"]), _plain(entry["value"])] for entry in scalar.values]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else pairs
    if _is_list(kind):
        return [_plain(item) for item in scalar.values]
    if pa.types.is_struct(kind):
        return {field.name: _plain(scalar[number]) for number, field in enumerate(kind)}
    if pa.types.is_decimal(kind):
        return f"{scalar.as_py():f}"
    if pa.types.is_duration(kind):
        return _duration(scalar)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _moment(scalar)
    return float(scalar.as_py()) if pa.types.is_float16(kind) else scalar.as_py()


def _moment(scalar: Any) -> str:
    """ISO 8601, without a fraction of nothing."""
    try:
        text = scalar.cast(pa.string()).as_py()
    except pa.ArrowInvalid:  # of a time zone that nobody knows: the moment is in UTC
        text = scalar.cast(pa.timestamp(scalar.type.unit)).cast(pa.string()).as_py() + "Z"
    match = _MOMENT.fullmatch(text)
    if match is None:  # a day, or one that no calendar has
        return str(text)
    day, clock, fraction, hours, minutes = match.groups("")
    parts = [f"{day}T" if day else "", clock, f".{fraction}" if fraction else "", hours]
    return "".join([*parts, f":{minutes}" if minutes else ""])


def _duration(scalar: Any) -> str:
    places = {"s": 0, "ms": 3, "us": 6, "ns": 9}[scalar.type.unit]
    digits = f"{abs(scalar.value):0{places + 1}d}"
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    sign = "-" if scalar.value < 0 else ""
    return f"{sign}PT{whole}{'.' if part else ''}{part}S"


def sizes(array: Any) -> Any:
    """The bytes (N,) that each of N values would take."""
    kind, count = array.type, len(array)
    if isinstance(array, pa.ExtensionArray):
        return sizes(array.storage)
    if pa.types.is_dictionary(kind):
        indices = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        known = sizes(array.dictionary)
        return known[indices] if len(known) else np.zeros(count, np.int64)
    if _is_text(kind) or _is_bytes(kind):
        lengths = pc.binary_length(array).fill_null(0)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_fixed_size_binary(kind):
        return np.full(count, kind.byte_width, np.int64)
    if pa.types.is_struct(kind):
        return sum((sizes(part) for part in array.flatten()), np.full(count, FIXED, np.int64))
    if _is_list(kind) or pa.types.is_map(kind):
        return FIXED + _sums(array)
    return np.full(count, FIXED, np.int64)


def _sums(array: Any) -> Any:
    """The same of the items of lists."""
    if pa.types.is_map(array.type):
        offsets = array.offsets.to_numpy()
        lengths = np.diff(offsets)
        its = [
            part.slice(offsets[0], offsets[-1] - offsets[0]) for part in (array.keys, array.items)
        ]
        items = sizes(its[0]) + sizes(its[1])
    else:
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        items = sizes(array.flatten())
    ends = np.concatenate([[0], np.cumsum(items)])
    stops = np.cumsum(lengths, dtype=np.int64)
    return ends[stops] - ends[stops - lengths]
