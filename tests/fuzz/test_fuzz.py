"""Whatever stands in a table or an image, nothing but an error that says so comes of it.

python -m benchmarks.fuzz      # 10,000 tables and 3,000 images, of which these are the first
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.images import KINDS
from tests.fuzz.trials import Trials

TABLES, PREDICTED = 60, 30
IMAGES = 40


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    """Raises WrongError for what breaks a promise."""
    return Trials(tmp_path)


def test_random_tables_are_read_or_refused_and_lose_no_row(trials: Trials) -> None:
    outcomes = [trials.try_table(n, predicts=n % PREDICTED == 0) for n in range(TABLES)]
    codes = Counter(outcome.code for outcome in outcomes)
    assert codes.keys() == {0, 65}
    assert min(codes.values()) > TABLES / 5
    statuses = sum((outcome.statuses for outcome in outcomes), Counter[str]())
    assert statuses["error"]
    assert statuses.total() > statuses["error"]


def test_random_images_are_shown_or_errors_of_their_rows(trials: Trials) -> None:
    outcomes = trials.try_images(0, IMAGES)
    assert {outcome.kind for outcome in outcomes} == set(KINDS)
    shown = sum(not outcome.code for outcome in outcomes)
    assert IMAGES / 4 < shown < IMAGES
