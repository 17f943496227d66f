"""What a client does when a server is busy, broken, gone or unwilling."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mmrag_batch.errors import DeniedError, UnavailableError
from mmrag_batch.generation.engines import http as module
from mmrag_batch.generation.engines.http import ATTEMPTS, Refused, Server

KEY = "secret-key"
Reply = int | None
"""A status, or None to drop the connection."""


class Moody:
    """A real HTTP server on this machine that answers by a list of statuses, then with 200."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.retry_after: str | None = None
        moody = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                moody.bodies.append(json.loads(self.rfile.read(length)))
                moody.headers.append({name.lower(): value for name, value in self.headers.items()})
                status = moody.replies.pop(0) if moody.replies else 200
                if status is None:
                    self.close_connection = True
                    return
                payload = {"error": {"message": "mood"}} if status != 200 else {"well": True}
                body = json.dumps(payload).encode()
                self.send_response(status)
                if moody.retry_after:
                    self.send_header("Retry-After", moody.retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing on standard error."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def moody() -> Iterator[Moody]:
    server = Moody()
    yield server
    server.stop()


@pytest.fixture
def connect(moody: Moody, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Server]]:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.001)
    opened: list[Server] = []

    def connect() -> Server:
        opened.append(Server(moody.endpoint, key=KEY, connections=2))
        return opened[-1]

    yield connect
    for server in opened:
        server.close()


@pytest.mark.parametrize("reply", [408, 429, 500, 502, 503, 504, None])
def test_what_may_pass_is_tried_again(
    moody: Moody, connect: Callable[[], Server], reply: Reply
) -> None:
    moody.replies = [reply, reply]
    assert connect().post("/generate", {"n": 1}) == {"well": True}
    assert moody.bodies == [{"n": 1}] * 3


@pytest.mark.parametrize("reply", [400, 404, 413, 422])
def test_what_will_not_pass_is_not_tried_again(
    moody: Moody, connect: Callable[[], Server], reply: Reply
) -> None:
    moody.replies = [reply]
    with pytest.raises(Refused, match=f"{reply} .*: mood"):
        connect().post("/generate", {})
    assert len(moody.bodies) == 1


@pytest.mark.parametrize("reply", [401, 403])
def test_a_server_that_does_not_know_us_ends_the_run(
    moody: Moody, connect: Callable[[], Server], reply: Reply
) -> None:
    moody.replies = [reply]
    with pytest.raises(DeniedError, match="OPENAI_API_KEY") as caught:
        connect().post("/generate", {})
    assert KEY not in str(caught.value)
    assert len(moody.bodies) == 1


@pytest.mark.parametrize("reply", [429, 503, None])
def test_a_server_that_stays_away_ends_the_run(
    moody: Moody, connect: Callable[[], Server], reply: Reply
) -> None:
    moody.replies = [reply] * ATTEMPTS
    with pytest.raises(UnavailableError, match=f"did not answer {ATTEMPTS} times") as caught:
        connect().post("/generate", {})
    assert moody.endpoint in str(caught.value)
    assert len(moody.bodies) == ATTEMPTS


def test_a_request_that_breaks_the_server_each_time_is_refused(
    moody: Moody, connect: Callable[[], Server]
) -> None:
    moody.replies = [500] * ATTEMPTS
    with pytest.raises(Refused, match="500"):
        connect().post("/generate", {})
    assert len(moody.bodies) == ATTEMPTS


def test_the_server_says_how_long_to_wait(
    moody: Moody, connect: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    waits: list[float | None] = []

    def wait(event: threading.Event, timeout: float | None = None) -> bool:
        waits.append(timeout)
        return False

    server = connect()
    monkeypatch.setattr(threading.Event, "wait", wait)
    moody.replies, moody.retry_after = [503], "7"
    server.post("/generate", {})
    assert waits[-1] == 0.01  # as asked, but never longer than the longest


def test_the_key_is_sent_and_the_address_shown_without_it(
    moody: Moody, connect: Callable[[], Server]
) -> None:
    connect().post("/generate", {})
    assert moody.headers[0]["authorization"] == f"Bearer {KEY}"
    server = Server("http://user:password@host:1/v1/", key=None, connections=1)
    assert server.name == "http://host:1"
    server.close()


def test_closing_ends_the_wait(
    moody: Moody, connect: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 1000.0)
    server = connect()
    moody.replies = [503]
    threading.Timer(0.2, server.close).start()
    with pytest.raises(UnavailableError, match="closed"):
        server.post("/generate", {})
