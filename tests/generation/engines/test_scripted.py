import pytest

from mmrag_batch.generation.choices import Answer
from mmrag_batch.generation.engine import GenerationRequest
from mmrag_batch.generation.engines.scripted import ScriptedEngine


def request(key: int, *token_ids: int, options: tuple[Answer, ...] = ()) -> GenerationRequest:
    return GenerationRequest(key=key, token_ids=token_ids, images=(), options=options)


def test_the_same_prompt_has_the_same_answer_in_any_company() -> None:
    engine = ScriptedEngine(window=4)
    alone = next(engine.generate([request(0, 7, 8)]))
    requests = [request(key, key) for key in range(1, 10)] + [request(10, 7, 8)]
    answers = {result.key: result.text for result in engine.generate(requests)}
    assert answers[10] == alone.text
    assert len(set(answers.values())) == 10


def test_every_request_is_answered_out_of_order() -> None:
    keys = [result.key for result in ScriptedEngine().generate(request(k, k) for k in range(20))]
    assert sorted(keys) == list(range(20))
    assert keys != sorted(keys)


def test_options_get_probabilities() -> None:
    result = next(ScriptedEngine().generate([request(0, 1, options=((5,), (6,), (7,)))]))
    assert sum(result.probabilities) == pytest.approx(1)
    assert len(set(result.probabilities)) == 3
