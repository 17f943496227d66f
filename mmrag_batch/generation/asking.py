"""Rows' questions to an engine: an answer to choose is asked for at each of its forks, and what the
engine gives there is combined (`choices.py`). No engine knows of options."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mmrag_batch.generation.choices import Fork, Option, combine, find_forks
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.records import Problem, TextProbability, Usage

if TYPE_CHECKING:
    from PIL.Image import Image


class AnswerRequest(NamedTuple):
    """The prompt of row `key`, and the messages that it was rendered from. `options` are the
    answers to choose from, of which there are at least two; empty for a free-form answer."""

    key: int
    token_ids: tuple[int, ...]
    images: tuple["Image", ...]
    options: tuple[Option, ...]
    messages: tuple[Mapping[str, Any], ...] = ()


class AnswerResult(NamedTuple):
    """The answer to the request with that key: a text and its probability, one probability an
    option, or an error. `chosen` is the place of the option where no probability is known."""

    key: int
    text: str = ""
    probabilities: tuple[float, ...] = ()
    error: Problem | None = None
    text_probability: TextProbability | None = None
    chosen: int | None = None
    usage: Usage = Usage()


_FREE_FORM = (Fork((), (), ()),)
"""What is asked where there are no choices: what follows, whichever it is."""


@dataclass(slots=True)
class _PendingAnswer:
    """An answer that is being asked for, and what has come of its forks."""

    request: AnswerRequest
    forks: tuple[Fork, ...]
    results: dict[int, Result] = field(default_factory=dict)


def ask(engine: Engine, requests: Iterable[AnswerRequest]) -> Iterator[AnswerResult]:
    """One result for each request, in any order; as many are in work as the engine takes."""
    pending: dict[int, _PendingAnswer] = {}

    def fork_requests() -> Iterator[Request]:
        for request in requests:
            assert len(request.options) != 1, "there is nothing to choose"
            forks = find_forks(request.options)
            pending[request.key] = _PendingAnswer(request, forks)
            for fork_index, fork in enumerate(forks or _FREE_FORM):
                yield Request(
                    (request.key, fork_index),
                    request.token_ids + fork.prefix,
                    request.images,
                    fork.tokens,
                    request.messages,
                )

    for result in engine.generate(fork_requests()):
        key, fork_index = result.key
        pending_answer = pending[key]
        pending_answer.results[fork_index] = result
        if len(pending_answer.results) == max(1, len(pending_answer.forks)):
            usages = [one.usage for one in pending_answer.results.values()]
            answer = _combine_results(pending.pop(key))
            if any(map(any, usages)):
                answer = answer._replace(usage=Usage(*map(sum, zip(*usages))))
            yield answer


def _combine_results(pending_answer: _PendingAnswer) -> AnswerResult:
    key = pending_answer.request.key
    results = [pending_answer.results[fork_index] for fork_index in sorted(pending_answer.results)]
    for result in results:
        if result.error is not None:
            return AnswerResult(key, error=result.error)
    try:
        if not pending_answer.forks:
            [written] = results
            probability = text_probability(written.logprobs)
            return AnswerResult(key, text=written.text, text_probability=probability)
        if results[0].chosen is not None:
            [fork], [result] = pending_answer.forks, results
            [index] = fork.followers[fork.tokens.index(result.chosen)]
            return AnswerResult(key, chosen=index)
        logits = [result.logits for result in results]
        probabilities = combine(len(pending_answer.request.options), pending_answer.forks, logits)
    except ValueError as error:
        problem = Problem("engine_failed", f"The engine could not answer: {error}")
        return AnswerResult(key, error=problem)
    return AnswerResult(key, probabilities=probabilities)


def text_probability(logprobs: Sequence[float]) -> TextProbability | None:
    """The probability of a text, given the log-probabilities of the tokens that were generated;
    None where there are none. Raises ValueError for one that is not a finite number."""
    if not logprobs:
        return None
    if not all(map(math.isfinite, logprobs)):
        raise ValueError("the model gave a probability that is not a finite number")
    total = math.fsum(logprobs)
    return TextProbability(math.exp(total), math.exp(total / len(logprobs)))
