"""The vLLM engine as it is: a real engine process, asked, misused and killed."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mmrag_batch.bundle import open_bundle
from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines import vllm
from mmrag_batch.generation.engines.vllm_process import VllmProcess
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import DEMO_BUNDLE, DeviceName, PredictSettings
from mmrag_batch.train.demo_world import write_world
from tests.generation.conftest import GENERATOR, MAX_NEW_TOKENS, by_key, text_probabilities

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("environment")]
ROWS = 8
PROMPT_TOKENS = 1024


def open_engine(directory: Path = DEMO_BUNDLE, *, device: DeviceName = "cpu") -> Engine:
    settings = PredictSettings(
        Path("in.csv"),
        Path("out.csv"),
        device=device,
        max_new_tokens=MAX_NEW_TOKENS,
        engine_rows=ROWS,
    )
    bundle = replace(open_bundle(DEMO_BUNDLE), path=directory)
    return vllm.open_engine(settings, bundle, PromptSpec(1, PROMPT_TOKENS, "text"))


@pytest.fixture(scope="module")
def engine(environment: None) -> Iterator[Engine]:
    engine = open_engine()
    yield engine
    engine.close()
    assert not multiprocessing.active_children()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """An engine that did not start leaves sockets; collected here, they warn no later test."""
    yield
    gc.collect()


def assert_same(results: dict[int, AnswerResult], reference: dict[int, AnswerResult]) -> None:
    assert results.keys() == reference.keys()
    for key, expected in reference.items():
        assert results[key].error is None
        assert results[key].text == expected.text
        assert results[key].probabilities == pytest.approx(expected.probabilities, abs=1e-3)
        assert text_probabilities(results[key]) == pytest.approx(
            text_probabilities(expected), abs=1e-3
        )


def kill_engine() -> None:
    [core] = multiprocessing.active_children()
    assert core.pid is not None
    os.kill(core.pid, signal.SIGKILL)


def test_answers_are_those_of_the_transformers_engine(
    engine: Engine,
    demo_requests: list[AnswerRequest],
    reference: dict[int, AnswerResult],
) -> None:
    assert_same(by_key(ask(engine, demo_requests)), reference)
    assert len({result.text for result in reference.values()}) > 4
    assert sum(len(one.images) for one in demo_requests) > 20
    assert max(len(one.probabilities) for one in reference.values()) > 2
    assert sum(one.text_probability is not None for one in reference.values()) == 8


def test_a_request_that_cannot_be_answered_is_one_error(
    engine: Engine, demo_requests: list[AnswerRequest]
) -> None:
    [picture] = [one for one in demo_requests if one.images][:1]
    bad = [
        picture._replace(key=100, images=()),
        picture._replace(key=101, token_ids=(768, 1_000_000)),
        picture._replace(key=102, token_ids=picture.token_ids + (5,) * 2000),
        picture._replace(key=103, images=picture.images * 2),
        picture._replace(key=104, token_ids=()),
    ]
    results = by_key(ask(engine, [*demo_requests[:10], *bad, *demo_requests[10:20]]))
    assert len(results) == 25
    for key, result in results.items():
        assert (result.error is not None) == (key >= 100), result
        assert result.error is None or result.error.code == "engine_failed"


def test_requests_are_fed_as_others_finish(
    engine: Engine, demo_requests: list[AnswerRequest]
) -> None:
    taken: list[int] = []

    def source() -> Iterator[Request]:
        for one in demo_requests:
            taken.append(one.key)
            yield Request((one.key, 0), one.token_ids, one.images)

    ahead = [len(taken) - given for given, _ in enumerate(engine.generate(source()))]
    assert max(ahead) == 2 * ROWS
    # Never in chunks: as long as there are more, one is taken for each that is answered.
    assert all(n == 2 * ROWS for n in ahead[: len(demo_requests) - 2 * ROWS])


def test_an_engine_that_is_killed_is_replaced_and_no_row_suffers(
    engine: Engine,
    demo_requests: list[AnswerRequest],
    reference: dict[int, AnswerResult],
) -> None:
    results = []
    for result in ask(engine, demo_requests):
        results.append(result)
        if len(results) == 20:
            kill_engine()
    assert_same(by_key(results), reference)


def test_a_row_that_kills_the_engine_is_one_error(
    engine: Engine,
    demo_requests: list[AnswerRequest],
    reference: dict[int, AnswerResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison, ask_it = demo_requests[30].key, VllmProcess.ask

    def ask_or_kill(process: VllmProcess, request: Request, /) -> Future[Result]:
        if request.key[0] == poison:
            kill_engine()
        return ask_it(process, request)

    monkeypatch.setattr(VllmProcess, "ask", ask_or_kill)
    results = by_key(ask(engine, demo_requests))
    error = results.pop(poison).error
    assert error is not None
    assert error.code == "engine_crashed"
    assert_same(results, {key: one for key, one in reference.items() if key != poison})


def test_what_is_not_finished_is_given_up_on_closing(
    engine: Engine, demo_requests: list[AnswerRequest]
) -> None:
    results = ask(engine, demo_requests)
    next(results)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 30
    assert not multiprocessing.active_children()


def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """The next one could not start: the engine would keep the memory of the GPU."""
    table, output = write_world(tmp_path, rows=800, seed=9601), tmp_path / "out.csv"
    command = [sys.executable, "-m", "mmrag_batch", "predict", str(table), str(output)]
    command += ["--engine", "vllm", "--device", "cpu", "--quiet"]
    with subprocess.Popen(command, env={**os.environ, "TQDM_DISABLE": "1"}) as run:
        store = tmp_path / "out.csv.store"
        while not (store.exists() and store.stat().st_size > 50_000):
            assert run.poll() is None
            time.sleep(0.1)
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_device_that_vllm_has_not_is_named() -> None:
    with pytest.raises(UnavailableError, match="runs on cpu here, not on cuda"):
        open_engine(device="cuda")


def test_a_checkpoint_that_vllm_cannot_load_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "generator" / name).symlink_to(GENERATOR / name)
    with pytest.raises(UnavailableError, match="vLLM did not start"):
        open_engine(tmp_path)
