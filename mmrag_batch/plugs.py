"""What the plug points share: things that are chosen by name, and imported when they are."""

from collections.abc import Mapping
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import TypeVar, cast

from mmrag_batch.errors import ConfigError

T = TypeVar("T")


def pick(known: Mapping[str, T], name: str, *, option: str, also: str = "") -> T:
    """What is known by that name. Raises ConfigError that names the nearest, or all there are;
    `also` is a name that `option` takes beside them."""
    if name in known:
        return known[name]
    near = get_close_matches(name, [*known, also], n=1)
    names = ", ".join(filter(None, [also, *known]))
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {names}."
    raise ConfigError(f"{option}: there is no {name!r}; {hint}")


def load(where: T | str) -> T:
    """The thing itself, or the one that `module:name` stands for."""
    return cast(T, resolve_name(where)) if isinstance(where, str) else where
