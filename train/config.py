"""YAML files -> typed settings of training and export commands."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mmrag_batch.errors import ConfigError

C = TypeVar("C")


def load_config(file: Path, kind: type[C]) -> C:
    """Read a YAML file into the dataclass `kind`.

    Raises ConfigError with every problem at once: unknown keys, missing keys, wrong types. Paths
    are taken relative to the working directory.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} should hold lines of `key: value`, not {values!r}.")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    problems = [f"unknown key {key!r}" for key in values if key not in known]
    settings: dict[str, Any] = {}
    for name, item in known.items():
        if name in values:
            settings[name] = _as(hints[name], values[name], name, problems)
        elif item.default is MISSING and item.default_factory is MISSING:
            problems.append(f"key {name!r} is missing")
    if problems:
        raise ConfigError(f"{file}: " + "; ".join(problems))
    return kind(**settings)


def _as(hint: Any, value: Any, name: str, problems: list[str]) -> Any:
    if type(None) in get_args(hint):  # an optional setting, `Path | None`
        if value is None:
            return None
        hint = get_args(hint)[0]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            problems.append(f"{name!r} should be one of {get_args(hint)}, not {value!r}")
    elif hint is float and isinstance(value, (int, str)):  # YAML reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            problems.append(f"{name!r} should be a number, not {value!r}")
    elif isinstance(hint, type) and not isinstance(value, hint):
        problems.append(f"{name!r} should be {hint.__name__}, not {value!r}")
    return value
