"""The figures of a training over its steps, as one SVG file that needs nothing but itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from mmrag_batch.report.plots import Plot, draw_series

Series = Mapping[str, Mapping[int, float]]
"""Figures by name, each by step."""
STYLES = 6
"""Lines of one plot that can be told apart, by colour and by dashes."""
SHARES = ("accuracy", "recall_at_1", "mrr")


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot, and of each of its lines the name and the last value."""

    plot: Plot
    legend: tuple[tuple[str, str], ...]


def draw_curves(title: str, figures: Series, x_title: str) -> str | None:
    """Losses above, accuracy, recall and MRR below; None where there are neither. What is no
    number, as the loss of a training that diverged, is left out."""
    panels = [
        _panel(kind, heading, y_title, chosen, x_title)
        for kind, heading, y_title, endings in (
            ("loss", "Loss", "loss (nats)", ("loss",)),
            ("held-out", "On what is held out", "on held-out rows, 0 to 1", SHARES),
        )
        if (chosen := _choose(figures, endings))
    ]
    if not panels:
        return None
    return _template().render(title=title, panels=panels)


def _choose(figures: Series, endings: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    finite = {
        name: sorted((float(at), value) for at, value in of.items() if math.isfinite(value))
        for name, of in figures.items()
        if name.endswith(endings) and not name.startswith("best_")  # it is of an earlier step
    }
    return dict([(name, points) for name, points in finite.items() if points][:STYLES])


def _panel(
    kind: str,
    heading: str,
    y_title: str,
    chosen: Mapping[str, list[tuple[float, float]]],
    x_title: str,
) -> Panel:
    plot = draw_series(
        kind,
        f"{heading}: {', '.join(chosen)}",
        list(chosen.values()),
        x_title=x_title,
        y_title=y_title,
        y_range=(0, 1) if kind == "held-out" else None,
    )
    return Panel(plot, tuple((name, f"{points[-1][1]:.4g}") for name, points in chosen.items()))


@lru_cache(1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("mmrag_batch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("curves.svg")
