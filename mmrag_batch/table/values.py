"""The values inside a cell: empty or not, and lists written as JSON or as others write them."""

import json
import re
from collections.abc import Iterator
from reprlib import Repr

from mmrag_batch.errors import RowError
from mmrag_batch.table.literals import MAX_VALUES, has_too_many, parse_written

EMPTY = frozenset({"", "nan", "NaN", "None", "null"})
"""How tools write a missing value as text."""

_SHORT = Repr()
_SHORT.maxstring = 60
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")
_NOT_IN_JSON: dict[str, object] = {"Infinity": float("inf"), "-Infinity": float("-inf")}
"""What Python writes and JSON has not; NaN is None."""
_DECODE = json.JSONDecoder(parse_constant=_NOT_IN_JSON.get).decode


def is_empty(cell: object) -> bool:
    """Whether a cell says nothing: null, NaN, or what tools write for them."""
    if isinstance(cell, str):
        return cell.strip() in EMPTY
    return cell is None or (isinstance(cell, float) and cell != cell)


def parse_list(code: str, column: str, expected: str, cell: object) -> list[object] | None:
    """The list in a cell: a list already, JSON, or a Python literal; None for an empty cell.

    Raises RowError `code`, which names the column, what was `expected` and what was found.
    """
    if is_empty(cell):
        return None
    if has_too_many(cell) if isinstance(cell, str) else _holds_too_many(cell):
        raise expected_error(code, column, f"at most {MAX_VALUES:,} values", cell)
    value = _parse_literal(cell) if isinstance(cell, str) else cell
    if not isinstance(value, list):
        raise expected_error(code, column, f"{expected}, as JSON", cell)
    # Without a backslash, values have the characters of their text.
    check_characters(code, column, cell if isinstance(cell, str) and "\\" not in cell else value)
    return value


def _holds_too_many(cell: object) -> bool:
    return isinstance(cell, list) and len(cell) > MAX_VALUES


def _parse_literal(text: str) -> object:
    """The value of JSON or of a Python literal; the text itself where it is neither."""
    try:
        return _DECODE(text)
    except (ValueError, RecursionError):
        pass
    try:
        return parse_written(text)
    except (ValueError, LookupError, RecursionError):
        return text


def check_characters(code: str, column: str, cell: object) -> None:
    """Raise RowError `code` for text in a cell, however nested, that no UTF-8 file should hold."""
    if isinstance(cell, str) and cell.isascii() and "\0" not in cell:
        return  # as most are, and this is quicker
    for text in _texts(cell):
        if _UNUSABLE.search(text):
            raise expected_error(code, column, "text without NUL or half of a surrogate pair", text)


def _texts(cell: object) -> Iterator[str]:
    """The texts in a cell that may hold such, without recursion: it may be nested deep."""
    pending = [cell]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if not item.isascii() or "\0" in item:
                yield item
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())


def expected_error(
    code: str, column: str, expected: str, value: object, item: int | None = None
) -> RowError:
    """The error of a cell, or of one item of its list, that is not what it should be."""
    location = f"column {column!r}" if item is None else f"column {column!r}, item {item}"
    value_text = "nothing" if is_empty(value) else _SHORT.repr(value)
    return RowError(code, f"{location}: expected {expected}, found {value_text}")
