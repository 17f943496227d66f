"""The page on serving, to the letter: its command starts a server, its request is answered."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrag_batch.settings import DEMO_BUNDLE

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = ["\n".join(line[4:] for line in block.splitlines()) for block in PAGE.split("\n\n")]
PORT = "localhost:8000"
GENERATE = "/inference/v1/generate"
NOT_HERE = "images that do not come with it"


def block(start: str) -> str:
    """The one indented block of the page that starts so."""
    (found,) = [text for text in BLOCKS if text.startswith(start)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "my-bundle").symlink_to(DEMO_BUNDLE)
    shutil.copytree(ROOT / "examples" / "demo" / "images", folder / "images")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """host:port of a server started as the page says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = block("python -m vllm").replace("python", sys.executable, 1)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command.split(), "--enable-scale-out", "--port", str(port), "--enforce-eager"],
            cwd=folder,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(f"http://localhost:{port}/health", server, folder / "log")
        yield f"localhost:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def wait_until_ready(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when the server answers; fail with its log when it has ended."""
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


@pytest.fixture
def send(address: str, folder: Path) -> Callable[[str], dict[str, Any]]:
    """Runs a curl command of the page against the server."""

    def run(command: str) -> dict[str, Any]:
        done = subprocess.run(
            ["bash", "-c", command.replace(PORT, address)],
            cwd=folder,
            capture_output=True,
            check=True,
            timeout=120,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


def test_a_chat_with_two_images_is_answered(send: Callable[[str], dict[str, Any]]) -> None:
    answer = send(block("curl"))
    choice = answer["choices"][0]
    assert choice["message"]["content"], answer
    assert answer["usage"]["prompt_tokens"] < 100

    other = send(block("curl").replace("00000-d1.jpg", "00000-d3.jpg"))
    assert other["choices"][0]["message"]["content"]


def test_an_image_token_typed_as_text_is_refused_and_the_server_goes_on(
    send: Callable[[str], dict[str, Any]],
) -> None:
    for typed in ("<|image|> What is it?", "What is <|image|>?"):
        refused = send(block("curl").replace("What shape is the thing in the last picture?", typed))
        assert refused["error"]["code"] == 400
        assert "3 image tokens but 2 images" in refused["error"]["message"]
    assert "choices" in send(block("curl"))


@pytest.fixture
def post(address: str) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Asks a path of the server; its status and what it says."""

    def ask(path: str, **body: object) -> tuple[int, dict[str, Any]]:
        content = json.dumps({"model": "my-bundle/generator", "temperature": 0, **body}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{address}{path}", content, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return ask


def test_a_text_is_tokenised_echoed_and_scored(
    post: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    text = "What does the red cube cost?"
    _, tokens = post("/tokenize", prompt=text)
    assert tokens["count"] == len(tokens["tokens"]) > 3
    for prompt in (text, tokens["tokens"]):
        for new in (0, 2):
            words = {"echo": True, "logprobs": 1, "max_tokens": new}
            status, answer = post("/v1/completions", prompt=prompt, **words)
            assert status == 200, answer
            [choice] = answer["choices"]
            assert choice["text"].startswith(text)
            scores = choice["logprobs"]["token_logprobs"]
            assert len(scores) == tokens["count"] + new
            assert all(score < 0 for score in scores[1:])


TYPED = "What is <|image|>?"
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQ"
    "DJ/pLvAAAAAElFTkSuQmCC"
)
SAID = [{"role": "user", "content": TYPED}]
SHOWN = {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": TYPED},
    "/v1/chat/completions": {"messages": SAID},
    "/v1/chat/completions/batch": {"messages": [SAID]},
    "/v1/messages": {"messages": SAID, "max_tokens": 2},
    "/v1/responses": {
        "input": [{"role": "user", "content": [SHOWN, {"type": "input_text", "text": TYPED}]}]
    },
    "/generative_scoring": {"query": TYPED, "items": ["a", "b"], "label_token_ids": [100, 101]},
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_refuses_an_image_token_without_its_image(
    post: Callable[..., tuple[int, dict[str, Any]]], route: str
) -> None:
    status, answer = post(route, **ROUTES[route])
    assert status == 400, answer
    assert re.search("[12] image tokens but [01] images", json.dumps(answer)), answer


def test_token_ids_are_refused_on_every_route_that_takes_them(
    post: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    _, tokens = post("/tokenize", prompt=TYPED)
    ids, shown = tokens["tokens"], {"type": "image_url", "url": PICTURE}
    nothing = {"mm_hashes": {"image": ["x"]}, "kwargs_data": None}
    place = {"mm_placeholders": {"image": [{"offset": 0, "length": 1}]}}
    sampling = {"sampling_params": {"max_tokens": 1}}
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/completions", {"prompt": ids}, "1 image tokens but 0"),
        ("/v1/completions", {"prompt": ids, "use_beam_search": True, "n": 2}, "1 image tokens but"),
        (GENERATE, {"token_ids": ids}, "1 image tokens but 0"),
        (GENERATE, {"token_ids": ids, "content_parts": []}, "1 image tokens but 0"),
        (GENERATE, {"token_ids": ids, "content_parts": [shown] * 2}, "1 image tokens but 2"),
        (GENERATE, {"token_ids": ids, "content_parts": [{**shown, "url": None}]}, NOT_HERE),
        (
            GENERATE,
            {"token_ids": ids, "content_parts": [{**shown, "url": "", "uuid": "x"}]},
            NOT_HERE,
        ),
        (GENERATE, {"token_ids": ids, "features": {**nothing, **place}}, NOT_HERE),
    ]
    for route, body, message in bad:
        status, answer = post(route, **body, **(sampling if route == GENERATE else {}))
        assert status == 400, (body, answer)
        assert message in answer["error"]["message"], body
    good = {"token_ids": ids, "content_parts": [shown], **sampling}
    assert post(GENERATE, **good)[0] == 200
