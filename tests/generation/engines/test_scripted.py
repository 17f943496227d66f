import pytest

from mmrag_batch.generation.engine import Request
from mmrag_batch.generation.engines.scripted import ScriptedEngine


def request(key: int, *token_ids: int, score: tuple[int, ...] = ()) -> Request:
    return Request((key, 0), token_ids, score=score)


def test_the_same_prompt_has_the_same_answer_in_any_company() -> None:
    engine = ScriptedEngine(window=4)
    alone = next(engine.generate([request(0, 7, 8)]))
    requests = [request(key, key) for key in range(1, 10)] + [request(10, 7, 8)]
    results = list(engine.generate(requests))
    answers = {result.key: (result.text, result.logprobs) for result in results}
    assert answers[10, 0] == (alone.text, alone.logprobs)
    assert len(set(answers.values())) == 10
    assert all(-1 < value <= 0 for value in alone.logprobs)


def test_every_request_is_answered_out_of_order() -> None:
    keys = [result.key for result in ScriptedEngine().generate(request(k, k) for k in range(20))]
    assert sorted(keys) == [(key, 0) for key in range(20)]
    assert keys != sorted(keys)


@pytest.mark.parametrize("count", [2, 3, 40])
def test_tokens_to_score_get_logits(count: int) -> None:
    result = next(ScriptedEngine().generate([request(0, 1, score=tuple(range(count)))]))
    assert len(result.logits) == count
    assert len(set(result.logits)) > 1
