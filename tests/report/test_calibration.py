"""What a confidence is worth, against values worked by hand."""

from pytest import approx

from mmrag_batch.report.calibration import Bin, coverage, find_threshold, reliability

CONFIDENCES = [0.9, 0.5, 0.9, 0.7, 0.2]
RIGHT = [True, False, False, True, False]


def test_bins_are_open_below_and_closed_above() -> None:
    first, second = reliability([1 / 15, 0.0, 0.07], [True, False, True])
    assert first.confidence == approx(1 / 30)
    assert first._replace(confidence=0) == Bin(0, 1 / 15, 2, 0, 1)
    assert second == Bin(1 / 15, 2 / 15, 1, 0.07, 1)


def test_bins_without_rows_are_left_out_and_the_last_holds_certainty() -> None:
    (last,) = reliability([1.0, 0.95], [True, False])
    assert (last.low, last.high, last.rows, last.correct) == (14 / 15, 1, 2, 1)


def test_coverage_falls_with_the_threshold_and_never_parts_equal_confidences() -> None:
    points = coverage(CONFIDENCES, RIGHT, rows=10)
    assert [(one.threshold, one.rows, one.correct) for one in points] == [
        (0.9, 2, 1),
        (0.7, 3, 2),
        (0.5, 4, 2),
        (0.2, 5, 2),
    ]
    assert [one.coverage for one in points] == [0.2, 0.3, 0.4, 0.5]
    assert [one.accuracy for one in points] == [1 / 2, 2 / 3, 2 / 4, 2 / 5]
    assert coverage([], [], rows=3) == []


def test_a_threshold_answers_as_many_rows_as_the_wished_accuracy_allows() -> None:
    points = coverage(CONFIDENCES, RIGHT, rows=5)
    chosen = [find_threshold(points, wished) for wished in (0.3, 0.5, 0.6, 0.7)]
    assert [one and one.threshold for one in chosen] == [0.2, 0.5, 0.7, None]
