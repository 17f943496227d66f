"""Options are asked for at their forks, and no engine knows of them."""

import math
from collections.abc import Iterable, Iterator

import pytest

from mmrag_batch.generation.asking import AnswerRequest, ask, text_probability
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.records import Problem, TextProbability

LOG_3 = 1.0986122886681098


class Keen:
    """An engine that likes higher tokens: the logit of token t is t times log 3. It answers the
    last request first, and what ends with a token in `broken` is an error. Of what it writes, it
    tells `logprobs`."""

    window = 100

    def __init__(self, *broken: int, logprobs: tuple[float, ...] = ()) -> None:
        self._broken = broken
        self._logprobs = logprobs
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        self.asked = list(requests)
        for request in reversed(self.asked):
            if request.token_ids[-1] in self._broken:
                yield Result(request.key, error=Problem("engine_failed", "broken"))
            elif request.score:
                yield Result(request.key, logits=tuple(LOG_3 * token for token in request.score))
            else:
                yield Result(request.key, text="free", logprobs=self._logprobs)

    def close(self) -> None: ...


def test_each_fork_is_one_request_and_shares_multiply() -> None:
    engine = Keen()
    options = ((5, 0), (6, 0), (5, 8, 0))
    [result] = ask(engine, [AnswerRequest(7, (1, 2), (), options)])
    assert [(one.key, one.token_ids, one.score) for one in engine.asked] == [
        ((7, 0), (1, 2), (5, 6)),
        ((7, 1), (1, 2, 5), (0, 8)),
    ]
    five, eight = 1 / 4, 3**8 / (1 + 3**8)
    assert result.probabilities == pytest.approx((five * (1 - eight), 3 / 4, five * eight))


def test_a_free_form_answer_is_one_request() -> None:
    [result] = ask(Keen(), [AnswerRequest(0, (1,), (), ())])
    assert (result.text, result.probabilities, result.error) == ("free", (), None)
    assert result.text_probability is None  # the engine does not tell


def test_a_text_is_as_probable_as_its_tokens_together() -> None:
    """1/2 * 1/4 * 1/8 = 1/64, whose cube root is 1/4."""
    engine = Keen(logprobs=(math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)))
    [result] = ask(engine, [AnswerRequest(0, (1,), (), ())])
    assert result.text_probability is not None
    assert result.text_probability.whole == pytest.approx(1 / 64)
    assert result.text_probability.per_token == pytest.approx(1 / 4)


def test_a_long_text_keeps_the_probability_of_its_tokens() -> None:
    found = text_probability([math.log(0.5)] * 4096)
    assert found is not None
    assert found.whole == 0.0
    assert found.per_token == pytest.approx(0.5)
    assert text_probability([0.0]) == TextProbability(1.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_text_of_which_a_token_has_no_probability_is_an_error(value: float) -> None:
    [result] = ask(Keen(logprobs=(-1.0, value)), [AnswerRequest(0, (1,), (), ())])
    assert (result.text, result.text_probability) == ("", None)
    assert result.error is not None
    assert "finite" in result.error.message


def test_a_row_of_which_one_fork_fails_is_one_error() -> None:
    rows = [AnswerRequest(key, (1,), (), ((5, 0), (6, 0), (5, 8, 0))) for key in range(3)]
    results = list(ask(Keen(5), rows))
    assert sorted(result.key for result in results) == [0, 1, 2]
    assert all(result.error == Problem("engine_failed", "broken") for result in results)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    class Odd(Keen):
        def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
            for request in requests:
                yield Result(request.key, logits=(float("nan"), 0.0))

    [result] = ask(Odd(), [AnswerRequest(0, (1,), (), ((5, 0), (6, 0)))])
    assert result.error is not None
    assert "finite" in result.error.message
