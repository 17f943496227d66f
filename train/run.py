"""A training run's folder: its config, where it came from, and its metrics.

config.yaml       the settings, as they were used
provenance.json   versions, seed, SHA-256 of the inputs
metrics.jsonl     one line a report
"""

import json
import logging
import platform
import random
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
import yaml

from mmrag_batch import __version__
from mmrag_batch.bundle import sha256
from mmrag_batch.errors import ConfigError

log = logging.getLogger("train")

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


class Run:
    """Writes the files of one training run and seeds its random numbers."""

    def __init__(
        self, directory: Path, config: Any, *, seed: int, inputs: Sequence[Path] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        settings = json.loads(json.dumps(asdict(config), default=str))
        (directory / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        provenance = {
            "mmrag-batch": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "seed": seed,
            "inputs": {str(file): sha256(file) for file in inputs},
        }
        (directory / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        (directory / "metrics.jsonl").write_text("")

    def report(self, **metrics: float | str) -> None:
        """Log a line of metrics and append it to `metrics.jsonl`."""
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}
        log.info("%s", "  ".join(f"{key} {value}" for key, value in shown.items()))
        with (self.directory / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(shown) + "\n")


def log_to_stderr() -> None:
    """Show the progress of a training command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
