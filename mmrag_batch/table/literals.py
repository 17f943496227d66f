"""Lists as Python, numpy, pandas and polars write them into a text cell, read without running them
and within bounds: `['a', nan]`, `[np.str_('a')]`, `array(['a'], dtype=object)`.

What has two readings is none: `['a' 'b']` is one text to Python and two to who printed an array.
"""

import ast
import re
from itertools import islice
from typing import NamedTuple

MAX_VALUES = 100_000
"""Most values in a cell: as many marks of structure, which bounds the time and memory it takes."""
MAX_ESCAPES = 1_000_000
"""Most backslashes in a text that is not JSON."""
MAX_DEPTH = 64
MAX_DIGITS = 400

_STRING = r"""'[^'\\\n]*+(?:\\.[^'\\\n]*+)*+'|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+\""""
_TOKEN = re.compile(
    rf"\s*+(?:(?P<string>[bBuU]?(?:{_STRING}))"
    r"|(?P<number>[+-]?(?:\d++\.?\d*+|\.\d++)(?:[eE][+-]?\d++)?)(?![\w.])"
    r"|(?P<name>-?[A-Za-z_][\w.]*+|<NA>)|(?P<mark>[\[\](){},:=])|(?P<end>$))",
    re.S,
)
_STRING_OR_MARK = re.compile(rf"{_STRING}|([\[{{,:])", re.S)
_UNKNOWN_ESCAPE = re.compile(r"\\(?![\n'\"abfnrtvxuUN0-7])")
_CONSTANTS: dict[str, object] = {
    **dict.fromkeys(("None", "null", "nan", "NaN", "NaT", "<NA>", "np.nan", "numpy.nan"), None),
    **dict.fromkeys(("True", "true", "np.True_"), True),
    **dict.fromkeys(("False", "false", "np.False_"), False),
    **dict.fromkeys(("inf", "np.inf", "Infinity"), float("inf")),
    **dict.fromkeys(("-inf", "-np.inf", "-Infinity"), float("-inf")),
}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_NUMPY_SCALAR = re.compile(r"(?:np\.|numpy\.)(?:str_|bool_?|u?int\d+|float\d+|u?longlong)")
_ARRAYS = frozenset({"array", "np.array", "numpy.array"})
_PANDAS = re.compile(r"<\w*Array>\n(.*)\nLength: (\d+), dtype: [^\n]*", re.S)
_POLARS = re.compile(r"shape: \((\d+),\)\nSeries: '[^\n]*' \[str\]\n\[\n(.*?)\n?\]", re.S)
_POLARS_LINE = re.compile(r'\t"([^\n]*)"')


class Written(NamedTuple):
    """A value of a kind that no cell needs, such as a `Timestamp(...)`, as it was written."""

    text: str

    def __repr__(self) -> str:
        return self.text


def has_too_many(text: str, most: int = MAX_VALUES) -> bool:
    """Whether a text has more values than one should: seen before they fill memory."""
    if len(text) <= most or sum(map(text.count, "[{,:")) <= most:
        return False
    marks = (match for match in _STRING_OR_MARK.finditer(text) if match[1])
    return next(islice(marks, most, None), None) is not None


def parse_written(text: str) -> object:
    """The value of a text. Raises ValueError where it is none, or too large a one."""
    if match := _POLARS.fullmatch(text.strip()):
        return _polars(match[2], int(match[1]))
    if match := _PANDAS.fullmatch(text.strip()):
        values = parse_written(match[1])
        if not isinstance(values, list) or len(values) != int(match[2]):
            raise ValueError("not the values that were there")
        return values
    reader = _Reader(text)
    value = reader.value(0)
    reader.take("end")
    return value


def _polars(body: str, count: int) -> list[object]:
    """A list of texts, which polars neither escapes nor shows in full."""
    lines = [_POLARS_LINE.fullmatch(line) for line in body.split("\n")] if count else []
    values: list[object] = [match[1] for match in lines if match]
    if not len(values) == len(lines) == count or "…" in body:
        raise ValueError("not the values that were there")
    return values


class _Reader:
    """Reads a text, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.next()

    def next(self) -> None:
        self.start = self._at
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"nothing known at {self._at}")
        self._at = match.end()
        self.kind, self.token = match.lastgroup, match[match.lastgroup]

    def take(self, *tokens: str) -> str:
        """The token, if it is one of these, or the end."""
        found = self.token if self.kind == "mark" else self.kind
        if found not in tokens:
            raise ValueError(f"found {found!r}")
        if found != "end":
            self.next()
        return found

    def is_mark(self, *tokens: str) -> bool:
        return self.kind == "mark" and self.token in tokens

    def value(self, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        kind, token, start = self.kind, self.token, self.start
        if kind == "mark":
            return self.group(self.take(*_CLOSING), depth)
        self.next()
        if kind == "string":
            if self.kind == "string":
                raise ValueError("two texts without a comma")
            return _text(token)
        if kind == "number":
            return _number(token)
        if kind != "name":
            raise ValueError("it ends")
        return self.call(token, start, depth) if self.is_mark("(") else _CONSTANTS[token]

    def group(self, opening: str, depth: int) -> object:
        """A list, a tuple or a dict, whose first mark was read."""
        closing, pairs = _CLOSING[opening], opening == "{"
        items: list[object] = []
        keys: list[object] = []
        last = ""
        while not self.is_mark(closing):
            item = self.value(depth + 1)
            if pairs:
                self.take(":")
                keys.append(item)
                item = self.value(depth + 1)
            items.append(item)
            if self.is_mark(closing):
                last = closing
                break
            last = self.take(",")
        self.take(closing)
        if pairs:
            if not all(isinstance(key, str | int | float | None) for key in keys):
                raise ValueError("a key that is none")
            return dict(zip(keys, items))
        if opening == "(":
            return items[0] if len(items) == 1 and last == ")" else tuple(items)
        return items

    def call(self, name: str, start: int, depth: int) -> object:
        """What numpy and pandas write like a call; nothing is called."""
        self.take("(")
        items: list[object] = []
        while not self.is_mark(")"):
            if self.kind == "name" and self.token not in _CONSTANTS:
                token, begin = self.token, self.start
                self.next()
                if self.is_mark("="):
                    self.next()
                    self.option(depth)
                else:
                    items.append(self.call(token, begin, depth + 1))
            else:
                items.append(self.value(depth + 1))
            if not self.is_mark(")"):
                self.take(",")
        end = self._at
        self.take(")")
        if name in _ARRAYS and len(items) == 1 and isinstance(items[0], list):
            return items[0]
        if _NUMPY_SCALAR.fullmatch(name) and len(items) == 1:
            return items[0]
        return Written(self._text[start:end].strip())

    def option(self, depth: int) -> None:
        """A value by name, as in `dtype=object`, which says nothing here."""
        if self.kind == "name" and self.token not in _CONSTANTS:
            name, start = self.token, self.start
            self.next()
            if self.is_mark("("):
                self.call(name, start, depth + 1)
        else:
            self.value(depth + 1)


def _text(token: str) -> object:
    if "\\" not in token and token[0] in "'\"":
        return token[1:-1]
    if "\0" in token or token.count("\\") > MAX_ESCAPES:
        raise ValueError("a text that cannot be read")
    # Python keeps an unknown escape as it stands but warns of it; doubled, it means the same.
    token = token.replace("\\\\", "\0")
    token = _UNKNOWN_ESCAPE.sub(r"\\\\", token).replace("\0", "\\\\")
    try:
        return ast.literal_eval(token)
    except (SyntaxError, MemoryError):
        raise ValueError("a text that cannot be read") from None


def _number(token: str) -> int | float:
    if len(token) > MAX_DIGITS:
        raise ValueError("too long a number")
    try:
        return int(token)
    except ValueError:
        return float(token)
