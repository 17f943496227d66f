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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mmrag_batch import __version__
from mmrag_batch.bundle import sha256

log = logging.getLogger("train")


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
