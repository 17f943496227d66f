"""Requests of the demo world, and what the transformers engine answers to them."""

from collections.abc import Iterable
from dataclasses import astuple

import pytest

from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec, Scoring, answer_texts, build_prompt
from mmrag_batch.records import Evidence
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.rows import read_rows

GENERATOR = DEMO_BUNDLE / "generator"
MAX_NEW_TOKENS = 12


@pytest.fixture(scope="session")
def demo_requests(tmp_path_factory: pytest.TempPathFactory) -> list[AnswerRequest]:
    """64 questions of a world that the demo bundle has not seen, each with its first documents.

    Most have choices, scored as texts or as letters; every eighth is answered freely.
    """
    from mmrag_batch.train.demo_world import write_world

    table = write_world(tmp_path_factory.mktemp("world"), rows=64, seed=9201)
    images, renderer = ImageLoader(table.parent), Renderer(GENERATOR)
    requests = []
    for row in read_rows(table):
        assert row.question is not None
        usable = [d for d in row.question.documents if not (d.image and "lost" in d.image)]
        evidence = [Evidence(document, 1.0) for document in usable[:3]]
        scoring: Scoring = "letter" if row.number % 4 == 1 else "text"
        prompt = build_prompt(row.question, evidence, PromptSpec(1, 0, scoring))
        answers = [] if row.number % 8 == 0 else answer_texts(row.question, scoring)
        requests.append(
            AnswerRequest(
                key=row.number,
                token_ids=tuple(renderer.render(prompt.messages)),
                images=tuple(images.load(source) for source in prompt.images),
                options=tuple(renderer.answer_ids(answer) for answer in answers),
            )
        )
    return requests


@pytest.fixture(scope="session")
def reference(demo_requests: list[AnswerRequest]) -> dict[int, AnswerResult]:
    """What the transformers engine answers."""
    from mmrag_batch.generation.engines.transformers import TransformersEngine

    engine = TransformersEngine(
        GENERATOR, device="cpu", batch_size=8, max_new_tokens=MAX_NEW_TOKENS, dtype="float32"
    )
    return by_key(ask(engine, demo_requests))


def text_probabilities(result: AnswerResult) -> list[float]:
    """Those of what was written, or none."""
    return [] if result.text_probability is None else list(astuple(result.text_probability))


def by_key(results: Iterable[AnswerResult]) -> dict[int, AnswerResult]:
    """Results by their key; there must not be two of one."""
    found = list(results)
    assert len({result.key for result in found}) == len(found)
    return {result.key: result for result in found}
