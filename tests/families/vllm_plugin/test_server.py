"""The page on serving, to the letter: its command starts a server, its request is answered."""

import json
import os
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
            [*command.split(), "--port", str(port), "--enforce-eager"],
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
