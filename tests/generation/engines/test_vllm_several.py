"""Several vLLM engines as one: here on a CPU, where `predict` starts one; on GPUs, one each."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrag_batch.bundle import open_bundle
from mmrag_batch.errors import UnavailableError
from mmrag_batch.families.family import Shape, open_family
from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.engine import Request
from mmrag_batch.generation.engines import vllm, vllm_process
from mmrag_batch.generation.engines.vllm_limits import GIB, Limits
from mmrag_batch.generation.engines.vllm_process import VllmProcess, prepare_environment
from mmrag_batch.generation.inflight import ResultFuture
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from tests.generation.conftest import GENERATOR, MAX_NEW_TOKENS, by_key
from tests.generation.engines.test_vllm import assert_same
from tests.generation.engines.test_vllm_limits import LLAMA_11B, LLAMA_90B

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("environment")]
LIMITS = Limits(rows=8, row_tokens=1280, step_tokens=2048, kv_cache_bytes=GIB // 4)


class Counted(VllmProcess):
    """Remembers the rows that it was asked."""

    def ask(self, request: Request, /) -> ResultFuture:
        self.__dict__.setdefault("rows", []).append(request.key[0])
        return super().ask(request)


@pytest.fixture(scope="module")
def started() -> list[Counted]:
    """Every engine that was started, in order."""
    return []


@pytest.fixture(scope="module")
def engine(environment: None, started: list[Counted]) -> Iterator[Supervisor]:
    prepare_environment(1)

    def start() -> Counted:
        started.append(
            Counted(
                GENERATOR,
                LIMITS,
                dtype="float32",
                max_new_tokens=MAX_NEW_TOKENS,
                family=open_family(GENERATOR),
                max_images=1,
            )
        )
        return started[-1]

    engine = Supervisor(start, start, window=4 * LIMITS.rows)
    yield engine
    engine.close()
    assert not multiprocessing.active_children()


def test_two_engines_answer_as_one_and_share_the_rows(
    engine: Supervisor,
    started: list[Counted],
    demo_requests: list[AnswerRequest],
    reference: dict[int, AnswerResult],
) -> None:
    assert_same(by_key(ask(engine, demo_requests)), reference)
    first, second = (set(one.__dict__["rows"]) for one in started)
    assert not first & second
    assert min(len(first), len(second)) > 3


def test_of_two_engines_the_one_that_is_killed_is_replaced_and_no_row_suffers(
    engine: Supervisor,
    started: list[Counted],
    demo_requests: list[AnswerRequest],
    reference: dict[int, AnswerResult],
) -> None:
    first, second = multiprocessing.active_children()
    results = []
    for result in ask(engine, demo_requests):
        results.append(result)
        if len(results) == 20:
            assert first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
    assert_same(by_key(results), reference)
    assert len(started) == 3
    assert second in multiprocessing.active_children()


class Gpus:
    """vLLM's platform on a node of GPUs, which no machine of these tests has."""

    device_type = "cuda"

    def __init__(self, *gib: int) -> None:
        self._gib = gib

    def device_count(self) -> int:
        return len(self._gib)

    def get_device_total_memory(self, device_id: int = 0) -> int:
        return self._gib[device_id] * GIB


def opened(
    gpus: int, monkeypatch: pytest.MonkeyPatch, node: Gpus, shape: Shape = LLAMA_11B
) -> tuple[Supervisor, list[tuple[Limits, int]]]:
    """An engine on such a node; the limits with which its parts were started, and their places."""
    started: list[tuple[Limits, int]] = []

    class Recorded:
        def __init__(self, _: Path, limits: Limits, *, place: int, **others: object) -> None:
            started.append((limits, place))

        def close(self) -> None: ...

    monkeypatch.setattr("vllm.platforms.current_platform", node)
    monkeypatch.setattr(Mllama, "shape", lambda *_: shape)
    monkeypatch.setattr(vllm, "VllmProcess", Recorded)
    settings = PredictSettings(Path("in.csv"), Path("out.csv"), gpus=gpus)
    engine = vllm.open_engine(settings, open_bundle(DEMO_BUNDLE), PromptSpec(1, 1024, "letter"))
    assert isinstance(engine, Supervisor)
    return engine, started


def test_each_gpu_has_an_engine_and_the_window_is_for_all_of_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = Gpus(*[80] * 8)
    alone, _ = opened(1, monkeypatch, node)
    with caplog.at_level("INFO"):
        engine, started = opened(8, monkeypatch, node)
    assert sorted(place for _, place in started) == list(range(8))
    assert [vllm_process._device_ids(limits, 5) for limits, _ in started] == [[5]] * 8
    assert engine._concurrency == 8 * alone._concurrency
    assert "8 engines, each with 1" in caplog.text
    assert "visible" not in caplog.text


def test_gpus_that_share_a_model_are_neighbours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _, started = opened(8, monkeypatch, Gpus(*[80] * 8), LLAMA_90B)
    devices = [vllm_process._device_ids(*one) for one in sorted(started, key=lambda one: one[1])]
    assert devices == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "2 engines, each with 4 GPUs that share the model" in caplog.text


def test_the_smallest_gpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    _, started = opened(2, monkeypatch, Gpus(80, 24))
    [(limits, place)] = started
    assert limits.ranks == 2
    assert vllm_process._device_ids(limits, place) is None  # the first ones, without being told


def test_gpus_that_are_left_idle_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        opened(1, monkeypatch, Gpus(80, 80))
    assert "1 of 2 visible GPUs is used; --gpus 2 uses all." in caplog.text


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"--gpus 4, but 2 are visible.*Use --gpus 2"):
        opened(4, monkeypatch, Gpus(80, 80))


def test_on_a_cpu_several_gpus_are_refused() -> None:
    settings = PredictSettings(Path("in.csv"), Path("out.csv"), gpus=2)
    with pytest.raises(UnavailableError, match=r"--gpus 2: vLLM .* runs on a CPU here"):
        vllm.open_engine(settings, open_bundle(DEMO_BUNDLE), PromptSpec(1, 1024, "letter"))
