"""Where the lines of a plot lie. They are drawn by `templates/plot.html`: a polyline and two axes
need no library, follow the page into the dark, and carry no style that its policy would refuse."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmrag_batch.report.calibration import Bin, Point
from mmrag_batch.report.interval import wilson

WIDTH, HEIGHT = 420.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 22.0, 12.0, 44.0
MOST_POINTS = 400
"""Of a line; there is no room to see more."""
MOST_MARKS = 30
"""Points of a line that are marked one by one; a line of one point would not be seen."""


@dataclass(frozen=True, slots=True)
class Line:
    """A polyline: what it is, as the style sheet knows it, and its points in the plot."""

    kind: str
    points: str


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A bar."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot in a space of WIDTH times HEIGHT; ticks are places and words."""

    name: str
    title: str
    x_title: str
    y_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    bars: tuple[Rectangle, ...] = ()
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)


def _y(value: float, highest: float = 1.0) -> float:
    return round(HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM), 2)


def _line(kind: str, points: Sequence[tuple[float, float]]) -> Line:
    return Line(kind, " ".join(f"{x:g},{y:g}" for x, y in points))


def _percents(of: Sequence[float]) -> list[tuple[float, str]]:
    return [(share, f"{100 * share:g}%") for share in of]


FIFTHS = _percents((0, 0.2, 0.4, 0.6, 0.8, 1))
X_TICKS = tuple((_x(at), text) for at, text in FIFTHS)


def draw_reliability(bins: Sequence[Bin]) -> Plot:
    """How many of a bin are right, over its confidence: a bar, the 95% interval, and the diagonal
    where both would be equal. The ground shows which share of all rows is in the bin."""
    rows = sum(one.rows for one in bins)
    bars, lines = [], [_line("ideal", [(_x(0), _y(0)), (_x(1), _y(1))])]
    for one in bins:
        share = wilson(one.correct, one.rows)
        width = _x(one.high) - _x(one.low)
        for kind, value in (("ground", one.rows / rows), ("bar", share.value)):
            x, inner = (_x(one.low), width) if kind == "ground" else (_x(one.low) + 3, width - 6)
            bars.append(Rectangle(kind, x, _y(value), round(inner, 2), round(_y(0) - _y(value), 2)))
        middle = _x(one.confidence)
        lines.append(_line("interval", [(middle, _y(share.low)), (middle, _y(share.high))]))
        lines.append(_line("mark", [(middle - 4, _y(share.value)), (middle + 4, _y(share.value))]))
    return Plot(
        "reliability",
        "Reliability: share of right answers over confidence",
        "confidence",
        "right",
        X_TICKS,
        tuple((_y(at), text) for at, text in FIFTHS),
        tuple(lines),
        tuple(sorted(bars, key=lambda bar: bar.kind != "ground")),
    )


def draw_coverage(points: Sequence[Point]) -> Plot:
    """The share of wrong answers among those kept, over the share of rows kept."""
    step = max(1, len(points) // MOST_POINTS)
    shown = [*points[:-1:step], points[-1]]
    worst = max(1 - point.accuracy for point in shown)
    highest = next((top for top in (0.05, 0.1, 0.2, 0.5) if worst <= top), 1.0)
    ticks = _percents([highest * part / 5 for part in range(6)])
    line = [(_x(one.coverage), _y(1 - one.accuracy, highest)) for one in shown]
    overall = _y(1 - points[-1].accuracy, highest)
    return Plot(
        "coverage",
        "Risk against coverage: share of wrong answers over share of rows kept",
        "rows kept, the most confident first",
        "wrong",
        X_TICKS,
        tuple((_y(at, highest), text) for at, text in ticks),
        (_line("ideal", [(_x(0), overall), (_x(1), overall)]), _line("curve", line)),
    )


def draw_series(
    name: str,
    title: str,
    series: Sequence[Sequence[tuple[float, float]]],
    *,
    x_title: str,
    y_title: str,
    y_range: tuple[float, float] | None = None,
) -> Plot:
    """Lines of points (x, y), the first of kind `series-0`. Without a range, y has that of the
    points; x begins at 0."""
    x_ticks = _steps(0, max(x for points in series for x, _ in points) or 1, whole=True)
    values = [y for points in series for _, y in points]
    y_ticks = _steps(*(y_range or (min(values), max(values))))
    across, along = (y_ticks[0], y_ticks[-1]), (x_ticks[0], x_ticks[-1])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _x(_share(point[0], *along)), _y(_share(point[1], *across))

    lines = []
    for index, points in enumerate(series):
        step = max(1, len(points) // MOST_POINTS)
        shown = [place(point) for point in [*points[:-1:step], points[-1]]]
        lines.append(_line(f"series-{index}", shown))
        if len(points) <= MOST_MARKS:
            lines += [_line(f"series-{index} dot", [(x - 2, y), (x + 2, y)]) for x, y in shown]
    return Plot(
        name,
        title,
        x_title,
        y_title,
        tuple((_x(_share(at, *along)), f"{at:,.10g}") for at in x_ticks),
        tuple((_y(_share(at, *across)), f"{at:.10g}") for at in y_ticks),
        tuple(lines),
    )


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


def _steps(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers, six or fewer apart from the ends, that hold both."""
    if low == high:
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    if whole:
        size = max(1.0, size)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{at * size:.10g}") for at in range(first, last + 1)]
