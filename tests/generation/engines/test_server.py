"""The server and the chat engine against a real vLLM server on this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from mmrag_batch.errors import DeniedError, UnavailableError
from mmrag_batch.generation.asking import AnswerRequest, AnswerResult, ask
from mmrag_batch.generation.engines.api import Dialect
from mmrag_batch.generation.engines.chat import ChatDialect
from mmrag_batch.generation.engines.remote import RemoteWorker
from mmrag_batch.generation.engines.server import TokenDialect
from mmrag_batch.generation.rendering import Renderer, Rendering, Unrendered
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.prompt import PromptSpec, answer_texts, build_prompt
from mmrag_batch.records import Evidence
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.table.rows import read_rows
from mmrag_batch.train.demo_world import write_world
from tests.generation.conftest import GENERATOR, MAX_NEW_TOKENS, by_key, text_probabilities

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "engines.md").read_text()
KEY = "secret-key"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    [words] = re.findall(r"^    python (-m vllm.*)$", PAGE, re.M)
    command = [sys.executable, *words.split(), "--served-model-name", "first", "second"]
    command += ["--max-model-len", "1280", "--max-num-seqs", "8", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    folder = tmp_path_factory.mktemp("server")
    (folder / "my-bundle").symlink_to(DEMO_BUNDLE)
    log = folder / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx2.get(f"{address}/health").is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def connect(
    endpoint: str,
    *,
    key: str | None = KEY,
    model: str | None = None,
    dialect: Dialect | None = None,
) -> RemoteWorker:
    return RemoteWorker(
        endpoint,
        dialect or TokenDialect(GENERATOR, MAX_NEW_TOKENS),
        model=model,
        key=key,
        connections=8,
        row_timeout=600,
    )


@pytest.fixture(scope="module")
def engine(endpoint: str) -> Iterator[Supervisor]:
    engine = Supervisor(lambda: connect(f"{endpoint}/v1"), window=8, elsewhere=True)
    yield engine
    engine.close()


def test_answers_are_those_of_the_transformers_engine(
    engine: Supervisor,
    demo_requests: list[AnswerRequest],
    reference: dict[int, AnswerResult],
) -> None:
    results = by_key(ask(engine, demo_requests))
    assert results.keys() == reference.keys()
    for key, expected in reference.items():
        assert results[key].error is None
        assert results[key].text == expected.text
        assert results[key].probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert text_probabilities(results[key]) == pytest.approx(
            text_probabilities(expected), abs=1e-5
        )


class Written(ChatDialect):
    """Asks as if the server gave no log-probabilities."""

    def __init__(self) -> None:
        super().__init__(MAX_NEW_TOKENS)
        self._left_out.add("logprobs")


@pytest.fixture
def by_chat(endpoint: str, request: pytest.FixtureRequest) -> Iterator[Supervisor]:
    def open_worker() -> RemoteWorker:
        return connect(endpoint, model="first", dialect=request.param())

    engine = Supervisor(open_worker, window=8, elsewhere=True)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def letter_requests(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[AnswerRequest], list[AnswerRequest]]:
    """64 questions by letter, every eighth freely: as token ids, and as messages."""
    table = write_world(tmp_path_factory.mktemp("world"), rows=64, seed=9202)
    images, by_tokens = ImageLoader(table.parent), Renderer(GENERATOR)
    both: tuple[list[AnswerRequest], list[AnswerRequest]] = ([], [])
    for row in read_rows(table):
        assert row.question is not None
        question = replace(row.question, choices=()) if row.number % 8 == 0 else row.question
        usable = [d for d in question.documents if not (d.image and "lost" in d.image)]
        evidence = [Evidence(document, 1.0) for document in usable[:3]]
        prompt = build_prompt(question, evidence, PromptSpec(1, 0, "letter"))
        pictures = tuple(images.load(source) for source in prompt.images)
        renderers: tuple[Rendering, Rendering] = (by_tokens, Unrendered())
        for renderer, requests in zip(renderers, both):
            ids = tuple(renderer.render(prompt.messages))
            letters = answer_texts(question, "letter")
            options = tuple(renderer.answer_ids(letter) for letter in letters)
            requests.append(AnswerRequest(row.number, ids, pictures, options, prompt.messages))
    return both


@pytest.mark.parametrize("by_chat", [lambda: ChatDialect(MAX_NEW_TOKENS)], indirect=True)
def test_answers_by_chat_are_those_of_the_server_engine(
    engine: Supervisor,
    by_chat: Supervisor,
    letter_requests: tuple[list[AnswerRequest], list[AnswerRequest]],
) -> None:
    by_tokens, by_messages = letter_requests
    expected, results = by_key(ask(engine, by_tokens)), by_key(ask(by_chat, by_messages))
    assert len(results) == 64
    for key, result in results.items():
        assert result.error is None
        assert result.usage.prompt > result.usage.completion > 0
        assert result.text == expected[key].text
        assert result.probabilities == pytest.approx(expected[key].probabilities, abs=1e-5)
        assert text_probabilities(result) == pytest.approx(
            text_probabilities(expected[key]), abs=1e-5
        )
        assert ranking(result) == ranking(expected[key])


def ranking(result: AnswerResult) -> list[int]:
    """The options, best first."""
    places = range(len(result.probabilities))
    return sorted(places, key=result.probabilities.__getitem__, reverse=True)


@pytest.mark.parametrize("by_chat", [Written], indirect=True)
def test_a_letter_is_written_where_it_is_not_scored(
    by_chat: Supervisor, letter_requests: tuple[list[AnswerRequest], list[AnswerRequest]]
) -> None:
    asked = [one for one in letter_requests[1] if one.options][:16]
    results = by_key(ask(by_chat, asked))
    for one in asked:
        assert results[one.key].error is None
        assert results[one.key].chosen in range(len(one.options))
        assert results[one.key].probabilities == ()


@pytest.mark.parametrize("by_chat", [lambda: ChatDialect(MAX_NEW_TOKENS)], indirect=True)
def test_a_conversation_that_is_too_long_is_one_error_in_the_servers_words(
    by_chat: Supervisor, letter_requests: tuple[list[AnswerRequest], list[AnswerRequest]]
) -> None:
    few = letter_requests[1][:4]
    text = {"role": "user", "content": [{"type": "text", "text": "costs " * 2000}]}
    results = by_key(ask(by_chat, [*few, few[1]._replace(key=100, images=(), messages=(text,))]))
    error = results.pop(100).error
    assert error is not None
    assert error.code == "engine_failed"
    assert "maximum context length" in error.message
    assert all(one.error is None for one in results.values())


@pytest.mark.parametrize("name", ["server", "chat"])
def test_the_command_of_the_docs_runs_as_it_is_written(
    endpoint: str, tmp_path: Path, name: str
) -> None:
    [command] = re.findall(rf"^    mmrag-batch (predict .* --engine {name} .*)$", PAGE, re.M)
    shutil.copy(ROOT / "examples" / "demo" / "questions.csv", tmp_path / "in.csv")
    shutil.copytree(ROOT / "examples" / "demo" / "images", tmp_path / "images")
    command = command.replace("--model my-bundle/generator", "--model first")
    words = command.replace("http://localhost:8000", endpoint).split()
    if name == "chat":  # which needs no file of a generator
        ignored = shutil.ignore_patterns("generator")
        shutil.copytree(DEMO_BUNDLE, tmp_path / "retrieves", ignore=ignored)
        words += ["--bundle", "retrieves", "--metrics-file", "metrics.prom"]
    done = subprocess.run(
        [sys.executable, "-m", "mmrag_batch", *words],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "60 rows" in done.stderr
    assert KEY not in done.stderr
    assert (" completion tokens. Next: " in done.stderr) == (name == "chat")
    if name == "chat":
        manifest = json.loads((tmp_path / "out.csv.manifest.json").read_text())
        [start] = manifest["starts"]
        assert start["usage"]["prompt"] > start["usage"]["completion"] >= 60
        assert (manifest["unscored"], manifest["settings"]["model"]) == (0, "first")
        metrics = (tmp_path / "metrics.prom").read_text()
        assert f'kind="prompt"}} {start["usage"]["prompt"]}\n' in metrics


def test_more_options_than_a_server_counts_at_once_are_asked_in_parts(
    engine: Supervisor, demo_requests: list[AnswerRequest]
) -> None:
    options = tuple((token, 772) for token in range(100, 126))
    few = demo_requests[1]._replace(options=options[:13])
    many = demo_requests[1]._replace(options=options)
    [part], [whole] = list(ask(engine, [few])), list(ask(engine, [many]))
    assert sum(whole.probabilities) == pytest.approx(1)
    ratio = sum(whole.probabilities[:13])
    assert whole.probabilities[:13] == pytest.approx([p * ratio for p in part.probabilities])


def test_a_request_that_the_server_refuses_is_one_error(
    engine: Supervisor, demo_requests: list[AnswerRequest]
) -> None:
    picture = next(one for one in demo_requests if one.images)
    bad = [
        picture._replace(key=100, token_ids=(768, 1_000_000)),
        picture._replace(key=101, token_ids=picture.token_ids + (5,) * 2000),
        picture._replace(key=102, images=picture.images * 20),
    ]
    results = by_key(ask(engine, [*demo_requests[:8], *bad, *demo_requests[8:16]]))
    assert len(results) == 19
    for key, result in results.items():
        assert (result.error is not None) == (key >= 100), result
        assert result.error is None or result.error.code == "engine_failed"


def test_a_model_is_the_first_or_one_that_is_served(endpoint: str) -> None:
    for name in (None, "second"):
        server = connect(endpoint, model=name)
        assert server.model == (name or "first")
        server.close()
    with pytest.raises(UnavailableError, match="serves first, second, not third"):
        connect(endpoint, model="third")


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_right_key_nothing_is_asked(endpoint: str, key: str | None) -> None:
    with pytest.raises(DeniedError, match=re.escape("Set OPENAI_API_KEY")):
        connect(endpoint, key=key)
