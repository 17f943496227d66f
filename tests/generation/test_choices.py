import pytest

from mmrag_batch.generation.choices import choose, softmax


def test_probabilities_are_those_of_the_softmax() -> None:
    assert softmax([0.0, 0.6931471805599453]) == pytest.approx((1 / 3, 2 / 3))


def test_large_logits_do_not_overflow() -> None:
    assert softmax([5000.0, 0.0, -5000.0]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        softmax([0.0, bad])


def test_the_most_probable_choice_is_the_answer() -> None:
    prediction = choose(["red", "green", "blue"], [0.2, 0.5, 0.3])
    assert (prediction.index, prediction.text) == (1, "green")
    assert prediction.probabilities == (0.2, 0.5, 0.3)


def test_the_first_of_equal_choices_is_the_answer() -> None:
    assert choose(["red", "green"], [0.5, 0.5]).index == 0
