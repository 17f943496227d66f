"""Figures of answers in free form, against numbers worked by hand from their definitions."""

import pytest
from pytest import approx

from mmrag_batch.report.free_form import (
    FreeForm,
    edit_similarity,
    is_near,
    normalize_vqa,
    score_answer,
    token_f1,
    vqa_score,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat.", "cat"),
        ("two dogs", "2 dogs"),
        ("don't", "dont"),
        ("1,000.5 m", "1000.5 m"),
        ("red/green", "red green"),
        ("U.S.", "u s"),
        ("none", "0"),
        ("an  apple\n", "apple"),
        ("theatre", "theatre"),
    ],
)
def test_answers_are_compared_as_the_evaluation_of_vqa_does(text: str, normal: str) -> None:
    assert normalize_vqa(text) == normal


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("the red car", "a red car!", 1.0),
        ("red car", "red", 2 * 1 * 0.5 / 1.5),
        ("a b c d", "c d e", 2 * (2 / 3) * (2 / 3) / (4 / 3)),  # "a" is an article
        ("blue blue", "blue", 2 * 0.5 * 1 / 1.5),
        ("", "red", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_token_f1(answer: str, reference: str, f1: float) -> None:
    assert token_f1(answer, reference) == approx(f1, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "reference", "similarity"),
    [
        ("Hello", "hello ", 1.0),
        ("kitten", "sitting", 1 - 3 / 7),
        ("ab", "cd", 0.0),
        ("abcd", "abxy", 0.0),  # a share of a half is too far
        ("", "", 1.0),
        ("x" * 2000, "x" * 1999 + "y", 0.0),
    ],
)
def test_edit_similarity(answer: str, reference: str, similarity: float) -> None:
    assert edit_similarity(answer, reference) == approx(similarity, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "reference", "near"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("1,050", "1000", True),
        ("50%", "0.5", True),
        ("-3", "3", False),
        ("Paris", "paris", True),
        ("Paris", "100", False),
        ("0", "0", True),
        ("0.01", "0", False),
    ],
)
def test_numbers_are_right_within_a_twentieth(answer: str, reference: str, near: bool) -> None:
    assert is_near(answer, reference) is near


def test_the_score_of_vqa_asks_each_nine_of_ten_people() -> None:
    people = ["yes"] * 3 + ["no"] * 7
    # Without one of the three: two others, 2/3. Without one of the seven: three, 1.
    assert vqa_score("Yes.", people) == approx((3 * (2 / 3) + 7 * 1) / 10, abs=1e-9)
    assert vqa_score("no", people) == 1.0
    assert vqa_score("maybe", people) == 0.0
    assert vqa_score("yes", ["yes"]) == 1.0


def test_the_nearest_of_several_right_answers_counts() -> None:
    assert score_answer("nyc", ["New York City", "NYC"]) == FreeForm(1.0, 1.0, 1.0, 1.0, None)
