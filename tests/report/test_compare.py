"""Two runs on the same rows, against values worked by hand and against SciPy's."""

from collections.abc import Sequence

import pandas as pd
import pytest
from pytest import approx

from mmrag_batch.report.compare import compare, match, mcnemar


@pytest.mark.parametrize(
    ("one_way", "other_way", "p"),
    [
        (0, 0, 1),
        (3, 3, 1),
        (5, 0, 2 / 32),
        (1, 6, 2 * (1 + 7) / 128),
        (10, 3, 2 * (1 + 13 + 78 + 286) / 8192),
        (3, 10, 2 * (1 + 13 + 78 + 286) / 8192),
    ],
)
def test_the_test_is_two_sided_and_exact(one_way: int, other_way: int, p: float) -> None:
    assert mcnemar(one_way, other_way) == approx(p, rel=1e-12)


def test_it_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for one_way, other_way in [(4, 9), (60, 41), (1200, 1100), (0, 900)]:
        theirs = stats.binomtest(one_way, one_way + other_way).pvalue
        assert mcnemar(one_way, other_way) == approx(theirs, rel=1e-6)


def test_many_flips_cost_no_time_and_overflow_nothing() -> None:
    assert 0 <= mcnemar(20_000, 30_000) < 1e-300
    assert mcnemar(25_000, 25_000) == 1


def facts(
    right: Sequence[bool | None], ids: Sequence[str | None], meanings: Sequence[int] | None = None
) -> pd.DataFrame:
    confidence = [0.5 + number / 10 for number in range(len(right))]
    columns = {"right": right, "id": ids, "confidence": confidence}
    return pd.DataFrame({**columns, "meaning": meanings or [0] * len(right)}, dtype=object)


def test_rows_are_matched_by_their_ids_in_whatever_order() -> None:
    here = facts([True, False, True, None], ["a", "b", "c", "d"])
    there = facts([False, True, None, True, True], ["c", "b", "d", "a", "e"])
    found = compare("other.csv", here, there, [])
    assert found.pairs.other == {0: 3, 1: 1, 2: 0}
    assert (found.pairs.unlabelled, found.pairs.only_here, found.pairs.only_there) == (1, 0, 1)
    assert (found.became_right, found.became_wrong) == ([2], [1])
    assert found.here is not None
    assert found.there is not None
    assert (found.rows, found.here.correct, found.there.correct, found.p) == (3, 2, 2, 1)


def test_rows_without_ids_are_matched_by_their_place() -> None:
    here, there = facts([True, True], [None, None]), facts([True, False, True], [None] * 3)
    found = compare("other.csv", here, there, [])
    assert (found.became_right, found.became_wrong) == ([1], [])
    assert found.pairs.only_there == 1


def test_rows_that_ask_something_else_are_left_out() -> None:
    here, there = facts([True, True], ["a", "b"], [1, 2]), facts([False, False], ["a", "b"], [1, 3])
    pairs = match(here, there)
    assert (pairs.other, pairs.differing) == ({0: 0}, 1)


def test_outputs_with_no_row_in_common_are_told() -> None:
    found = compare("other.csv", facts([True], ["a"]), facts([True], ["b"]), [])
    assert (found.rows, found.here, found.there, found.p) == (0, None, None, 1)
