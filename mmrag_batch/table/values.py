"""The values inside a cell: empty or not, and lists written as JSON or as pandas writes them."""

import ast
import json
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from reprlib import Repr

from mmrag_batch.errors import RowError

EMPTY = frozenset({"", "nan", "NaN", "None", "null"})
"""How tools write a missing value as text."""

_SHORT = Repr()
_SHORT.maxstring = 60
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?s:.)")
_PYTHON_ESCAPES = frozenset("\n\\'\"abfnrtvxuUN01234567")
_TOUCHING_QUOTES = re.compile(r"['\"]\s*['\"]")


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
    value = _parse_literal(cell) if isinstance(cell, str) else cell
    if not isinstance(value, list):
        raise expected_error(code, column, f"{expected}, as JSON", cell)
    check_characters(code, column, value)
    return value


def _parse_literal(text: str) -> object:
    """The value of JSON or of a Python literal; the text itself where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    # Python keeps an unknown escape as it stands but warns of it; doubled, it means the same.
    text = _ESCAPE.sub(lambda match: _double_unknown(match[0]), text)
    try:
        return text if _joins_strings(text) else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return text


def _double_unknown(escape: str) -> str:
    return escape if escape[1] in _PYTHON_ESCAPES else "\\" + escape


def _joins_strings(text: str) -> bool:
    """Whether Python would join neighbours of a list into one text.

    A numpy array comes out of pandas as `['a' 'b']`, which is one choice to Python and two to
    whoever wrote it.
    """
    if not _TOUCHING_QUOTES.search(text):
        return False
    tokens = tokenize.generate_tokens(StringIO(text).readline)
    kinds = [token.type for token in tokens if token.type != tokenize.NL]
    return any(kind == other == tokenize.STRING for kind, other in pairwise(kinds))


def check_characters(code: str, column: str, cell: object) -> None:
    """Raise RowError `code` for text in a cell, however nested, that no UTF-8 file should hold."""
    if isinstance(cell, str) and cell.isascii() and "\0" not in cell:
        return  # as most are, and this is quicker
    for text in (cell,) if isinstance(cell, str) else _texts(cell):
        if _UNUSABLE.search(text):
            raise expected_error(code, column, "text without NUL or half of a surrogate pair", text)


def _texts(cell: object) -> Iterator[str]:
    """Every text in a cell, without recursion: a cell may be nested as deep as JSON allows."""
    pending = [cell]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
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
