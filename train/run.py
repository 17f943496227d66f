"""A training run's folder: its config, where it came from, and its metrics.

config.yaml       the settings, as they were used
provenance.json   versions, seed, SHA-256 of all that the run reads
metrics.jsonl     one line a report
"""

import json
import logging
import platform
import random
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mmrag_batch import __version__
from mmrag_batch.errors import ConfigError
from mmrag_batch.hub.names import shown

log = logging.getLogger("mmrag_batch.train")


class Run:
    """Writes the files of one training run and seeds its random numbers.

    `resumed` goes on with the metrics that are there. Of several processes, only the one that is
    `main` writes.
    """

    def __init__(
        self,
        directory: Path,
        config: Any,
        *,
        seed: int,
        inputs: Mapping[str, str] | None = None,
        resumed: bool = False,
        main: bool = True,
    ) -> None:
        self.directory = directory
        self._main = main
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if not main:
            return
        directory.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(_settings(config), sort_keys=False)
        (directory / "config.yaml").write_text(text)
        provenance = {
            "mmrag-batch": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "seed": seed,
            "inputs": dict(inputs or {}),
        }
        (directory / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        if not resumed:
            (directory / "metrics.jsonl").write_text("")

    def report(self, **metrics: float | str) -> None:
        """Log a line of metrics and append it to `metrics.jsonl`."""
        if not self._main:
            return
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}
        log.info("%s", "  ".join(f"{key} {value}" for key, value in rounded.items()))
        with (self.directory / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(rounded) + "\n")


def check_same(
    directory: Path, config: Any, inputs: Mapping[str, str], *, unfinished: Path
) -> None:
    """Raise ConfigError where the run whose unfinished work lies in `directory` had other settings
    or read something else, naming each: `steps: 100 -> 200`. Versions may differ."""
    try:
        settings = yaml.safe_load((directory / "config.yaml").read_text())
        known = json.loads((directory / "provenance.json").read_text())["inputs"]
    except FileNotFoundError:
        return
    new_settings = _settings(config)
    differences = [
        f"{name}: {settings.get(name)} -> {new_settings.get(name)}"
        for name in dict.fromkeys([*settings, *new_settings])
        if settings.get(name) != new_settings.get(name)
    ] + [
        f"{name}: {'changed' if name in known and name in inputs else 'added or removed'}"
        for name in dict.fromkeys([*known, *inputs])
        if known.get(name) != inputs.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{directory} holds an unfinished run with other settings or inputs "
            f"({'; '.join(differences)}); choose another `out`, or remove {unfinished} to start "
            "anew."
        )


def _settings(config: Any) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config), default=shown))
    return settings
