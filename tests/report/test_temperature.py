"""Temperatures, against scipy's and against data that were made with one."""

import numpy as np
import pytest
from pytest import approx

from mmrag_batch.report.temperature import Scored, fit_temperature, soften

optimize = pytest.importorskip("scipy.optimize")
special = pytest.importorskip("scipy.special")


def draw(rows: int, temperature: float, *, seed: int = 0) -> list[Scored]:
    """Rows of three choices, or of two, whose labels are as likely as their probabilities are at a
    temperature."""
    random = np.random.default_rng(seed)
    scored = []
    for number in range(rows):
        logits = random.normal(size=3 - number % 2) * 4
        label = random.choice(len(logits), p=special.softmax(logits / temperature))
        scored.append(Scored(tuple(special.softmax(logits)), int(label), number))
    return scored


def test_a_temperature_divides_the_logits_and_its_inverse_undoes_that() -> None:
    logits = np.array([2.0, 0.5, -1.0])
    given = tuple(special.softmax(logits))
    softened = soften(given, 2.5)
    assert softened == approx(special.softmax(logits / 2.5), rel=1e-5)
    assert soften(softened, 1 / 2.5) == approx(given, rel=1e-4)
    assert soften((1.0, 0.0), 2.0)[0] < 1
    assert soften((0.25, 0.75), 1.0) == (0.25, 0.75)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_what_made_the_labels_is_found_as_scipy_finds_it(temperature: float) -> None:
    rows = draw(3000, temperature)
    fit = fit_temperature(rows)

    logs = np.full((len(rows), 3), -np.inf)
    for line, row in zip(logs, rows):
        line[: len(row.probabilities)] = np.log(row.probabilities)

    def nll(divisor: float) -> float:
        likely = special.log_softmax(logs / divisor, axis=1)
        return -float(np.mean([line[row.label] for line, row in zip(likely, rows)]))

    best = optimize.minimize_scalar(
        nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert fit.temperature == approx(best.x, rel=1e-4)
    assert fit.temperature == approx(temperature, rel=0.15)
    assert fit.nll_before == approx(nll(1.0))
    assert fit.nll_after == approx(best.fun, rel=0.01)


def test_rows_are_as_sure_as_they_are_right_where_they_were_held_out() -> None:
    fit = fit_temperature(draw(3000, 3.0))
    assert fit.error_before > 0.15
    assert fit.error_after < 0.05


def test_rows_that_ask_the_same_are_held_out_together() -> None:
    with pytest.raises(ValueError, match="all rows ask the same"):
        fit_temperature([row._replace(group=7) for row in draw(60, 1.0)])
