"""Cells as an output has them: whatever their type, a text in CSV and valid JSON in JSON Lines.

Dates and times are ISO 8601, decimals are their digits, bytes are base64. A picture is its path,
and what is long or has no path is its SHA-256: an output is for reading.
"""

import json
import math
from base64 import b64encode
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import sha256

from mmrag_batch.table.pictures import is_picture
from mmrag_batch.table.record import Typed

SHORT = 256
"""Most bytes that are written in full."""


def encode(text: str) -> bytes:
    """UTF-8. Half a surrogate pair, which has no such form, becomes `\\ud800`, as JSON calls it."""
    return text.encode("utf-8", "backslashreplace")


def as_utf8(text: str) -> str:
    """The text as `encode` writes it."""
    return text if text.isascii() else encode(text).decode()


def to_json(value: object) -> str:
    """JSON of a value of any type; NaN is null, and an infinity a text."""
    try:
        return _encode(value)
    except ValueError:  # of a number that JSON has not
        return _encode(_plain(value))


def to_text(value: object) -> str:
    """The text of a cell: itself, nothing for nothing, else JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return to_json(value)
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return repr(value)  # as JSON has it, without the price of an encoder
    plain = _plain(value)
    if plain is None:
        return ""
    return plain if isinstance(plain, str) else _encode(plain)


def _plain(value: object, *, is_typed: bool = False) -> object:
    """The same of what JSON has; only in what is typed, an object can be a picture."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Typed):
        return _plain(value.plain, is_typed=True)
    if isinstance(value, dict):
        if is_typed and is_picture(value):
            return value["path"] or (value["bytes"] and _digest(value["bytes"])) or None
        return {str(key): _plain(item, is_typed=is_typed) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, is_typed=is_typed) for item in value]
    return _word(value)


def _word(value: object) -> str:
    if isinstance(value, bytes):
        if len(value) <= SHORT:
            return b64encode(value).decode()
        return _digest(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"PT{value.total_seconds():f}".rstrip("0").rstrip(".") + "S"
    return f"{value:f}" if isinstance(value, Decimal) and value.is_finite() else str(value)


def _digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode
