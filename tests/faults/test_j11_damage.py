"""Whatever happens to a file that a run keeps, no wrong output comes of it.

python -m benchmarks.sequences --sequences 0      # 5,000 damages, of which these are the first
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import Commands, why_not
from tests.faults.damage import FEW_BYTES
from tests.faults.damages import Damages, Outcome
from tests.faults.machine import MEMORY

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
COUNT = 40


@pytest.fixture(scope="module")
def damages() -> Iterator[Damages]:
    with Commands() as commands, tempfile.TemporaryDirectory(dir=MEMORY) as root:
        yield Damages(commands, Path(root))


@pytest.fixture(scope="module")
def outcomes(damages: Damages) -> list[Outcome]:
    """Raises WrongError for a damage that breaks a promise."""
    return [damages.try_one(seed) for seed in range(COUNT)]


def test_j11_random_damage_ends_with_a_documented_code_and_never_in_a_wrong_output(
    outcomes: list[Outcome],
) -> None:
    codes = Counter(outcome.code for outcome in outcomes)
    assert codes[0], "most damages are mended without a word to anybody"
    assert codes[78], "an output that was changed is refused"


def test_j11_a_few_damaged_bytes_cost_a_few_answers(outcomes: list[Outcome]) -> None:
    costs = [
        outcome.asked
        for outcome in outcomes
        if outcome.damage in FEW_BYTES and "store" in outcome.file and outcome.code == 0
    ]
    assert costs
    assert max(costs) <= 30, "of 300"
