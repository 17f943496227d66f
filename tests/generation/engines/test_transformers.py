import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, MllamaProcessor

from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.families.family import MLLAMA
from mmrag_batch.families.mllama.inputs import collate, load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.engines.transformers import LOOKAHEAD, TransformersEngine, batched
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import PromptSpec, answer_texts, build_prompt
from mmrag_batch.records import Question
from tests.generation.conftest import text_probabilities

PICTURES = [
    Image.linear_gradient("L").resize((90, 20)).convert("RGB"),
    Image.radial_gradient("L").resize((30, 30)).convert("RGB"),
    Image.new("RGB", (64, 64), "red"),
]
QUESTION = "What does it cost?"


@pytest.fixture(scope="module")
def engine(tiny_generator_dir: Path) -> Iterator[TransformersEngine]:
    engine = open_engine(tiny_generator_dir)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def renderer(tiny_generator_dir: Path) -> Renderer:
    return Renderer(tiny_generator_dir)


def open_engine(directory: Path, *, batch_size: int = 4) -> TransformersEngine:
    return TransformersEngine(
        directory, device="cpu", batch_size=batch_size, max_new_tokens=5, dtype="auto"
    )


def request(
    renderer: Renderer,
    key: int,
    text: str = QUESTION,
    *,
    image: int | None = None,
    choices: int = 0,
) -> AnswerRequest:
    picture = () if image is None else (PICTURES[image],)
    source = None if image is None else f"{image}.png"
    options = tuple(str(number) for number in range(choices))
    question = Question(text, source, options, (), None, None)
    prompt = build_prompt(question, [], PromptSpec(1, 0, "letter"))
    answers = tuple(renderer.answer_ids(letter) for letter in answer_texts(question, "letter"))
    return AnswerRequest(key, tuple(renderer.render(prompt.messages)), picture, answers)


@pytest.fixture
def mixed(renderer: Renderer) -> list[AnswerRequest]:
    """Rows of every kind and many lengths: with and without images and choices."""
    return [
        request(
            renderer,
            key,
            "word " * (key % 7) + "?",
            image=None if key % 3 == 0 else key % 2,
            choices=0 if key % 5 == 0 else 2 + key % 3,
        )
        for key in range(15)
    ]


def by_key(results: Iterator[AnswerResult]) -> dict[int, AnswerResult]:
    return {result.key: result for result in results}


@torch.inference_mode()
def test_probabilities_are_those_of_transformers_own_processor(
    engine: TransformersEngine, renderer: Renderer, tiny_generator_dir: Path
) -> None:
    result = next(ask(engine, [request(renderer, 0, image=0, choices=3)]))

    tokenizer = AutoTokenizer.from_pretrained(tiny_generator_dir)
    image_processor = load_image_processor(tiny_generator_dir)
    processor = MllamaProcessor(image_processor, tokenizer)  # type: ignore[no-untyped-call]
    prompt = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>"
        f"Question: {QUESTION}\n\nA. 0\nB. 1\nC. 2\n\nAnswer with the letter."
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    inputs = processor(images=[[PICTURES[0]]], text=[prompt], return_tensors="pt")
    logits = load_model(tiny_generator_dir, dtype=torch.float32)(**inputs).logits[0, -1]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ABC"]
    assert result.probabilities == pytest.approx(logits[letters].softmax(-1).tolist(), abs=1e-6)
    assert sum(result.probabilities) == pytest.approx(1, abs=1e-12)


@torch.inference_mode()
def test_texts_are_scored_as_decoding_restricted_to_them_would(
    engine: TransformersEngine, renderer: Renderer, tiny_generator_dir: Path
) -> None:
    one = request(renderer, 0, image=0)._replace(options=((5, 6, 1), (5, 7, 1), (8, 1)))
    result = next(ask(engine, [one]))

    processor = load_image_processor(tiny_generator_dir)
    model = load_model(tiny_generator_dir, dtype=torch.float32)
    image_id = model.config.image_token_index

    def shares(prefix: tuple[int, ...], tokens: list[int]) -> list[float]:
        inputs = collate([(*one.token_ids, *prefix)], [one.images], processor, 0, image_id)
        return list(model(**inputs).logits[0, -1, tokens].softmax(-1).tolist())

    (fives, eight), (six, seven) = shares((), [5, 8]), shares((5,), [6, 7])
    expected = (fives * six, fives * seven, eight)
    assert result.probabilities == pytest.approx(expected, abs=1e-6)


def test_answers_do_not_depend_on_neighbours_or_order(
    engine: TransformersEngine, mixed: list[AnswerRequest]
) -> None:
    together = by_key(ask(engine, mixed))
    backwards = by_key(ask(engine, reversed(mixed)))
    assert together.keys() == backwards.keys() == {one.key for one in mixed}
    for one in mixed:
        alone = next(ask(engine, [one]))
        for other in (together[one.key], backwards[one.key]):
            assert other.error is None
            assert other.text == alone.text
            assert other.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
            assert text_probabilities(other) == pytest.approx(text_probabilities(alone), abs=1e-6)
    assert len({result.probabilities for result in together.values()}) > 10


def test_a12_a_row_that_does_not_fit_into_memory_does_not_take_its_batch_with_it(
    engine: TransformersEngine, mixed: list[AnswerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that runs out of memory cannot be had on demand: the batches with one row do."""
    forward = engine._forward
    large = mixed[3].key

    def out_of_memory(batch: list[Request], inputs: Any) -> list[Result]:
        if any(one.key[0] == large for one in batch):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(batch, inputs)

    monkeypatch.setattr(engine, "_forward", out_of_memory)
    results = by_key(ask(engine, mixed))
    errors = {key: result.error.code for key, result in results.items() if result.error}
    assert errors == {large: "engine_oom"}


def test_a_failing_row_does_not_take_its_batch_with_it(
    engine: TransformersEngine, mixed: list[AnswerRequest], renderer: Renderer
) -> None:
    unknown_token = request(renderer, 100, choices=2)._replace(token_ids=(0, 1_000_000))
    lost_image = request(renderer, 101, image=0, choices=2)._replace(images=())
    results = by_key(ask(engine, [*mixed, unknown_token, lost_image]))
    failed = {key for key, result in results.items() if result.error is not None}
    assert failed == {100, 101}
    problem = results[100].error
    assert problem is not None
    assert problem.code == "engine_failed"
    assert "index out of range" in problem.message
    assert len(results) == len(mixed) + 2


def test_a_model_that_gives_no_number_answers_nothing(
    tiny_generator_dir: Path, renderer: Renderer
) -> None:
    engine = open_engine(tiny_generator_dir)
    with torch.no_grad():
        engine._model.lm_head.weight.fill_(float("nan"))
    result = next(ask(engine, [request(renderer, 0, choices=2)]))
    assert result.error is not None
    assert "finite" in result.error.message


def test_free_form_answers_are_greedy_and_end_at_the_end_token(
    tiny_generator_dir: Path, renderer: Renderer
) -> None:
    engine = open_engine(tiny_generator_dir)
    one = request(renderer, 0)
    text = next(ask(engine, [one])).text
    assert text
    head = engine._model.lm_head.weight
    first = int(engine._model(input_ids=torch.tensor([one.token_ids])).logits[0, -1].argmax())
    with torch.no_grad():  # the end token now scores twice what the best token did
        head[engine._generation.eos_token_id] = 2 * head[first]
    assert next(ask(engine, [one])).text == ""


@torch.inference_mode()
@pytest.mark.parametrize("ends", [True, False])
def test_a_text_is_as_probable_as_each_of_its_tokens_after_those_before(
    tiny_generator_dir: Path, renderer: Renderer, *, ends: bool
) -> None:
    """The end token counts where it was generated; beside it in the batch is a longer text."""
    engine = open_engine(tiny_generator_dir)
    one, other = request(renderer, 0, "a"), request(renderer, 1, "b")
    prompt = torch.tensor([one.token_ids])
    written = engine._model.generate(prompt, generation_config=engine._generation)[0]
    tokens = written[prompt.shape[1] :].tolist()
    assert len(set(tokens)) > 2
    if ends:  # what it writes third ends the text from now on
        engine._generation.eos_token_id = [tokens[2], 9]
        tokens = tokens[: tokens.index(tokens[2]) + 1]
    logits = engine._model(input_ids=torch.tensor([[*one.token_ids, *tokens]])).logits[0]
    shares = logits.log_softmax(-1)[len(one.token_ids) - 1 : -1]
    expected = [float(row[token]) for row, token in zip(shares, tokens)]

    [result] = [found for found in ask(engine, [other, one]) if found.key == 0]
    assert text_probabilities(result) == pytest.approx(
        [math.exp(sum(expected)), math.exp(sum(expected) / len(expected))], rel=1e-4
    )


def test_batches_hold_rows_of_one_kind_and_similar_length(
    mixed: list[AnswerRequest],
) -> None:
    requests = [
        Request((one.key, 0), one.token_ids, one.images, tuple(first for first, *_ in one.options))
        for one in mixed
    ]
    batches = list(batched(requests, 4))
    assert sorted(one.key for batch in batches for one in batch) == [(n, 0) for n in range(15)]
    for batch in batches:
        assert 1 <= len(batch) <= 4
        assert len({(len(one.images), bool(one.score)) for one in batch}) == 1
        assert [len(one.token_ids) for one in batch] == sorted(len(one.token_ids) for one in batch)


def test_no_more_than_the_window_is_read_ahead(
    tiny_generator_dir: Path, renderer: Renderer
) -> None:
    engine = open_engine(tiny_generator_dir, batch_size=1)
    asked: list[int] = []

    def requests() -> Iterator[AnswerRequest]:
        for key in range(3 * LOOKAHEAD):
            asked.append(key)
            yield request(renderer, key, choices=2)

    ahead = 0
    for answered, _ in enumerate(ask(engine, requests())):
        ahead = max(ahead, len(asked) - answered)
    assert LOOKAHEAD <= ahead <= engine.window
    assert len(asked) == answered + 1


def test_h06_a_missing_gpu_is_named(
    tiny_generator_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="--device cpu"):
        TransformersEngine(
            tiny_generator_dir, device="cuda", batch_size=1, max_new_tokens=1, dtype="auto"
        )


def test_h01_a_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [MLLAMA]}))
    with pytest.raises(MissingError, match="safetensors"):
        open_engine(tmp_path)
