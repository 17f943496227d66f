import pytest

from mmrag_batch.generation.choices import Fork, choose, combine, find_forks, softmax


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


def test_letters_part_in_one_fork() -> None:
    assert find_forks(((5, 0), (6, 0), (7, 0))) == (Fork((), (5, 6, 7), ((0,), (1,), (2,))),)


def test_texts_that_begin_alike_part_later() -> None:
    red, red_star, red_moon = (5, 0), (5, 8, 0), (5, 9, 0)
    assert find_forks((red, (6, 0), red_star, red_moon)) == (
        Fork((), (5, 6), ((0, 2, 3), (1,))),
        Fork((5,), (0, 8, 9), ((0,), (2,), (3,))),
    )


def test_a_single_answer_has_no_fork_and_is_certain() -> None:
    assert find_forks(((5, 6, 0),)) == ()
    assert combine(1, [], []) == (1.0,)


def test_shares_multiply_along_the_forks_and_sum_to_1() -> None:
    answers = ((5, 0), (6, 0), (5, 8, 0))
    log_3 = 1.0986122886681098
    probabilities = combine(3, find_forks(answers), [(log_3, 0.0), (0.0, log_3)])
    assert probabilities == pytest.approx((3 / 4 * 1 / 4, 1 / 4, 3 / 4 * 3 / 4))
    assert sum(probabilities) == pytest.approx(1)


def test_a_fork_without_logits_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        combine(2, find_forks(((5, 0), (6, 0))), [])
