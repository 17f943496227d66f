"""What a scheduler does to requests: queues, and preemption where the cache is too small."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.vllm
log = logging.getLogger(__name__)
CASES = ["1 tile", "two apart", "text only", "4 tiles", "two, then one", "late", "two adjacent"]


def test_requests_that_wait_and_are_preempted_have_the_answers_of_each_alone(
    start_engine: Callable[..., Any], check: Callable[..., None]
) -> None:
    engine = start_engine(
        enforce_eager=True,
        max_num_seqs=32,
        max_model_len=256,
        block_size=32,
        num_gpu_blocks_override=100,
    )
    check(engine, (CASES * 15)[:100])
    preemptions = metric(engine, "vllm:num_preemptions")
    log.info("%d preemptions", preemptions)
    assert preemptions >= 20


def test_two_tensor_parallel_ranks_answer_as_transformers(
    start_engine: Callable[..., Any], check: Callable[..., None]
) -> None:
    check(start_engine(enforce_eager=True, tensor_parallel_size=2), CASES, tokens=10)


def metric(engine: Any, name: str) -> float:
    """The value of one of vLLM's counters."""
    return float(sum(found.value for found in engine.get_metrics() if found.name == name))
