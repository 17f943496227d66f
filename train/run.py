"""A training run's folder: its config, where it came from, and its metrics.

config.yaml       the settings, as they were used
provenance.json   versions, seed, SHA-256 of all that the run reads
metrics.jsonl     one line a report
curves.svg        its losses and shares over steps or epochs, drawn anew at each report
tensorboard/ ...  what a tracker keeps here, if one is asked for; see trackers.py
"""

import json
import logging
import platform
import random
from collections.abc import Mapping
from contextlib import suppress
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
from mmrag_batch.report.curves import draw_curves
from mmrag_batch.trackers import Tracker, TrackerName, check_tracker

log = logging.getLogger("mmrag_batch.train")


METRICS = "metrics.jsonl"
UNITS = ("step", "epoch")


class Run:
    """Writes the files of one training run, sends its figures to a tracker where one is asked for,
    and seeds its random numbers.

    `resumed` goes on with the metrics and the curves that are there. Of several processes, only the
    one that is `main` writes. Raises UnavailableError for a tracker that is not installed.
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
        report_to: TrackerName = "none",
    ) -> None:
        check_tracker(report_to)
        self.directory = directory
        self._main = main
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if not main:
            return
        directory.mkdir(parents=True, exist_ok=True)
        settings = _settings(config)
        text = yaml.safe_dump(settings, sort_keys=False)
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
            (directory / METRICS).write_text("")
        self._curves = _Curves()
        self._tracker = None
        if report_to != "none":
            state = directory / "tracker.json"
            if not resumed:
                state.unlink(missing_ok=True)
            title = directory.resolve().name
            self._tracker = Tracker(report_to, directory, title, settings, state)
        self._sent = _Curves()
        """What the tracker had from this run before it was killed."""
        for metrics in _read_lines(directory / METRICS):
            figures = self._curves.add(metrics)
            if self._tracker is not None and self._tracker.goes_on:
                self._sent.add(metrics)
            elif self._tracker is not None:
                self._tracker.log(figures, self._curves.step)

    def report(self, **metrics: float | str) -> None:
        """Log a line of metrics, append it to `metrics.jsonl`, draw the curves with it, and send it
        to the tracker."""
        if not self._main:
            return
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}
        log.info("%s", "  ".join(f"{key} {value}" for key, value in rounded.items()))
        with (self.directory / METRICS).open("a") as stream:
            stream.write(json.dumps(rounded) + "\n")
        figures = self._curves.add(metrics)
        title = self.directory.resolve().name
        if drawn := draw_curves(title, self._curves.figures, self._curves.unit):
            partial = self.directory / ".curves.svg.partial"
            partial.write_text(drawn, encoding="utf-8")
            partial.replace(self.directory / "curves.svg")
        if self._tracker is not None:
            # What was reported between the last checkpoint and the kill comes up again.
            new = {name: figures[name] for name in figures if not self._sent.has(name, metrics)}
            self._tracker.log(new, self._curves.step)

    def close(self) -> None:
        """Say that the run is finished."""
        if self._main and self._tracker is not None:
            self._tracker.close()


class _Curves:
    """Figures by name and step: of a step that was reported twice, the last."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[int, float]] = {}
        self.step = 0
        self.unit = "step"

    def add(self, metrics: Mapping[str, float | str]) -> dict[str, float]:
        """Add the numbers of a report and return them; without a step they are of the last one."""
        for unit in UNITS:
            if unit in metrics:
                self.unit, self.step = unit, int(metrics[unit])
        numbers = {
            name: value
            for name, value in metrics.items()
            if name not in UNITS and not isinstance(value, str)
        }
        for name, value in numbers.items():
            self.figures.setdefault(name, {})[self.step] = value
        return numbers

    def has(self, name: str, metrics: Mapping[str, float | str]) -> bool:
        """Whether a figure was reported for the step of `metrics`; or ever, if they have none."""
        steps = [int(metrics[unit]) for unit in UNITS if unit in metrics]
        return name in self.figures and (not steps or steps[0] <= max(self.figures[name]))


def _read_lines(file: Path) -> list[dict[str, float | str]]:
    lines = []
    for line in file.read_text().splitlines():
        with suppress(ValueError):  # the line that was being written when the run was killed
            lines.append(json.loads(line))
    return lines


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
    for told in (settings, new_settings):
        told.pop("report_to", None)  # where figures go changes nothing of what is learnt
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
