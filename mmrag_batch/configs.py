"""Settings as people read them: their keys with what each means, and files that have them all.

In a file, what stands behind a # without a space is a key with its default: without the #, it can
be changed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

from mmrag_batch.declare import rules_of, settings_of

WIDTH = 100


class Key(NamedTuple):
    """A setting as it is shown: what it is for, what it may be and what it is without."""

    name: str
    default: Any
    help: str
    values: str

    def meaning(self, width: int) -> list[str]:
        """Lines of at most so many characters."""
        return [*wrap(self.help, width), *wrap(f"[{self.values}]", width)]


def keys(kind: type[Any]) -> Iterator[Key]:
    """The settings that a dataclass declares, in order."""
    rules = rules_of(kind)
    defaults = {item.name: item.default for item in fields(kind)}
    for name, declared in settings_of(kind).items():
        default = defaults[name]
        without = declared.otherwise or ("" if default in (None, "") else _plain(default))
        if default is MISSING:
            without = "needed"
        else:
            without = f"default: {without}" if without else "may be left out"
        yield Key(name, default, declared.help, f"{rules[name].expected}; {without}")


def as_list(kind: type[Any]) -> Iterator[str]:
    """Lines that tell of each key."""
    known = list(keys(kind))
    column = max(len(key.name) for key in known) + 2
    for key in known:
        first, *others = key.meaning(WIDTH - column)
        yield f"{key.name:{column}}{first}"
        yield from (" " * column + line for line in others)


def as_yaml(settings: Any, head: Sequence[str]) -> str:
    """A YAML file of settings, which begins with the lines of `head`."""
    import yaml

    def line(name: str, value: object) -> str:
        text: str = yaml.safe_dump({name: value}, allow_unicode=True, width=10**6)
        return text.rstrip("\n").removesuffix(" null")

    return _file(settings, head, line)


def as_toml(settings: Any, head: Sequence[str], table: str) -> str:
    """A TOML file of settings, in a table of that name."""

    def line(name: str, value: object) -> str:
        return f"{name} = {'' if value is None else json.dumps(value, ensure_ascii=False)}".rstrip()

    return _file(settings, head, line, f"\n[{table}]\n")


def _file(settings: Any, head: Sequence[str], line: Any, section: str = "") -> str:
    """Each key below what it means; behind a # where it has its default."""
    parts = ["\n".join(f"# {one}".rstrip() for one in head) + "\n" + section]
    for key in keys(type(settings)):
        value = getattr(settings, key.name)
        comment = "\n".join(f"# {one}" for one in key.meaning(WIDTH - 2))
        shown = line(key.name, str(value) if isinstance(value, Path) else value)
        parts.append(f"{comment}\n{'#' if value == key.default else ''}{shown}\n")
    return "\n".join(parts)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
