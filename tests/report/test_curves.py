import math
import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from mmrag_batch.report.curves import STYLES, draw_curves

SVG = "{http://www.w3.org/2000/svg}"


def drawn(figures: dict[str, dict[int, float]], title: str = "run") -> ElementTree.Element:
    text = draw_curves(title, figures, "step")
    assert text is not None
    return ElementTree.fromstring(text)


def texts(picture: ElementTree.Element) -> list[str]:
    return [str(element.text) for element in picture.iter(f"{SVG}text")]


def line(panel: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """The points of the curve of a panel, which is longer than its marks."""
    found = [
        one.get("points", "") for one in panel.iter(f"{SVG}polyline") if one.get("class") == kind
    ]
    points = max(found, key=len).split()
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points)]


def panels(picture: ElementTree.Element) -> list[ElementTree.Element]:
    return [svg for svg in picture.iter(f"{SVG}svg") if svg.get("class") == "plot"]


def test_losses_and_shares_have_a_plot_each_with_axes_units_and_a_legend() -> None:
    picture = drawn(
        {
            "loss": {50: 1.25, 100: 0.5},
            "eval_loss": {0: 2.0, 100: 0.75},
            "mrr": {0: 0.25, 100: 0.5},
            "learning_rate": {50: 1e-3, 100: 1e-4},
        }
    )
    found = texts(picture)
    assert {"run", "loss: 0.5", "eval_loss: 0.75", "mrr: 0.5", "step", "loss (nats)"} <= {*found}
    assert "on held-out rows, 0 to 1" in found
    assert not [text for text in found if "learning_rate" in text]
    losses, shares = panels(picture)
    (first, last) = line(losses, "series-0")
    assert first[0] < last[0]
    assert first[1] < last[1], "y grows downwards"
    assert "0.5" in texts(losses)
    assert texts(shares)[:2] == ["0", "0.2"]


def test_points_lie_where_their_ticks_are() -> None:
    (panel,) = panels(drawn({"recall_at_1": {0: 0.2, 10: 0.4}}))
    ticks = {
        str(one.text): float(one.get("y", "")) - 4
        for one in panel.iter(f"{SVG}text")
        if one.get("class") == "y"
    }
    assert [y for _, y in line(panel, "series-0")] == pytest.approx([ticks["0.2"], ticks["0.4"]])


@pytest.mark.parametrize("values", [{1: 0.0}, {1: 5.0, 2: 5.0}, {3: -1e-9, 4: 1e9}, {0: 1e-30}])
def test_any_loss_can_be_drawn(values: dict[int, float]) -> None:
    (panel,) = panels(drawn({"loss": values}))
    for x, y in line(panel, "series-0" if len(values) > 1 else "series-0 dot"):
        assert 0 <= x <= 420
        assert 0 <= y <= 300


def test_a_loss_that_is_no_number_is_left_out() -> None:
    (panel,) = panels(drawn({"loss": {1: 2.0, 2: math.nan, 3: math.inf, 4: 1.0}}))
    assert len(line(panel, "series-0")) == 2
    assert draw_curves("run", {"loss": {1: math.nan}}, "step") is None


def test_a_figure_of_an_earlier_step_is_no_curve() -> None:
    assert draw_curves("run", {"best_mrr": {9: 0.5}, "rows": {0: 7}}, "epoch") is None


def test_a_long_curve_has_no_more_points_than_can_be_seen_and_its_last_one() -> None:
    (panel,) = panels(drawn({"loss": {step: 1 / (1 + step) for step in range(5000)}}))
    points = line(panel, "series-0")
    assert len(points) < 500
    assert points[-1][0] == pytest.approx(398, abs=1)


def test_the_name_of_a_run_is_text() -> None:
    assert "<b>&" in texts(drawn({"loss": {1: 1.0}}, title="<b>&"))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_words_stand_out_in_light_and_dark(scheme: str) -> None:
    style = files("mmrag_batch.report").joinpath("templates", "curves.svg").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style)
    colours = dict(re.findall(r"--([\w]+): (#\w{6})", light if scheme == "light" else dark))
    names = ["text", "soft", *(f"c{index}" for index in range(STYLES))]
    ground = luminance(colours["ground"])
    for name in names:
        low, high = sorted([ground, luminance(colours[name])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, name
