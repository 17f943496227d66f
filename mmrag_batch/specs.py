"""Dataclasses out of JSON that others wrote: every field is there, and of its type."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

S = TypeVar("S")
Ranges = Mapping[str, tuple[float, float]]
"""The least and the most that a field of that name, or each of its numbers, may be."""


def parse_spec(kind: type[S], values: object, ranges: Ranges) -> S:
    """A `kind` with those of the values that it has fields for; a list is a tuple.

    Raises ValueError that says what is missing or not what it should be.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is {values!r:.60}")
    hints = get_type_hints(kind)
    given = {name: value for name, value in values.items() if name in hints}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = value = tuple(value)
        if not (_is_a(hints[name], value) and _is_within(value, ranges.get(name))):
            raise ValueError(f"{name!r} is {value!r:.60}")
    for item in fields(kind):  # type: ignore[arg-type]  # a TypeVar cannot ask for a dataclass
        has_default = item.default is not MISSING or item.default_factory is not MISSING
        if not (has_default or item.name in given):
            raise ValueError(f"{item.name!r} is missing")
    return kind(**given)


def _is_a(hint: Any, value: Any) -> bool:
    """Whether a value, of JSON or a spec that was read before, is what a field may hold."""
    kind, items = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_is_a(one, value) for one in items)
    if kind is Literal:
        return isinstance(value, str) and value in items
    if kind is tuple:
        return type(value) is tuple and len(value) == len(items) and all(map(_is_a, items, value))
    if kind is dict:
        return type(value) is dict and all(_is_a(items[1], one) for one in value.values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _is_within(value: Any, limits: tuple[float, float] | None) -> bool:
    if limits is None:
        return True
    low, high = limits
    return all(low <= one <= high for one in (value if isinstance(value, tuple) else (value,)))
