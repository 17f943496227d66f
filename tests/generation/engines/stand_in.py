"""A small HTTP server that answers as vLLM's does, misbehaves as it is told, and can go away."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmrag_batch.generation.engines.api import MODELS
from mmrag_batch.generation.engines.chat import COMPLETIONS
from mmrag_batch.generation.engines.server import GENERATE

Reply = int | bytes | float | tuple[int, bytes] | None
"""A status, a body with status 200 or another, seconds between the bytes of an answer that has no
end (a mebibyte at a time, where they are none), or None to drop the connection."""
WELL = 200
TOP = (("A", -0.5), ("B", -1.5), (" A", -3.0))
"""What a chat server answers a letter with."""


class StandIn:
    """Answers on this machine, with what `reply` says to a path and a request's body."""

    def __init__(self) -> None:
        self.reply: Callable[[str, Any], Reply] = lambda path, body: WELL
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.retry_after: str | None = None
        self._http: ThreadingHTTPServer | None = None
        self._open: set[Any] = set()
        self._port = 0
        self.start()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answer at the same address as before."""
        assert self._http is None
        self._http = _Server(("127.0.0.1", self._port), self._handler())
        self._port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections break, and new ones are refused."""
        if self._http is not None:
            http, self._http = self._http, None
            http.shutdown()
            http.server_close()
            for connection in list(self._open):
                connection.close_connection = True
                connection.request.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                stand_in._open.add(self)

            def finish(self) -> None:
                stand_in._open.discard(self)
                super().finish()

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                self._answer(json.loads(self.rfile.read(length)))

            def _answer(self, body: Any) -> None:
                stand_in.asked.append((self.path, body))
                stand_in.headers.append({name.lower(): v for name, v in self.headers.items()})
                reply = stand_in.reply(self.path, body)
                if reply is None:
                    self.close_connection = True
                elif isinstance(reply, float):
                    self._dribble(reply)
                elif isinstance(reply, tuple):
                    self._send(*reply)
                elif isinstance(reply, bytes):
                    self._send(WELL, reply)
                elif reply == WELL:
                    self._send(reply, json.dumps(answer_to(self.path, body)).encode())
                else:
                    self._send(reply, json.dumps({"error": {"message": "mood"}}).encode())

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                if stand_in.retry_after:
                    self.send_header("Retry-After", stand_in.retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _dribble(self, pause: float) -> None:
                self.send_response(WELL)
                self.send_header("Content-Length", str(3 << 30))
                self.end_headers()
                try:
                    while not self.close_connection:
                        self.wfile.write(b" " if pause else b" " * 2**20)
                        time.sleep(pause)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                """Nothing on standard error."""

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Connections break here on purpose."""


def answer_to(path: str, body: Any) -> object:
    """What vLLM would answer, as far as its engine reads it. The first token is the likeliest; what
    it writes could be nothing else."""
    if path == MODELS:
        return {"data": [{"id": "demo"}]}
    if path == COMPLETIONS:
        text = body.get("structured_outputs", {"choice": "A"})["choice"][0]
        return chat_answer(text, top=TOP if "logprobs" in body else ())
    assert path == GENERATE, path
    sampling = body["sampling_params"]
    scored = sampling.get("logprob_token_ids", [])
    top = [{"token_id": token, "logprob": -float(place)} for place, token in enumerate(scored)]
    token = {"token_id": 100, "logprob": 0.0, "top_logprobs": top}
    logprobs = {"content": [token] * sampling["max_tokens"]}
    return {"choices": [{"token_ids": [100] * sampling["max_tokens"], "logprobs": logprobs}]}


def chat_answer(
    text: str | None,
    *,
    top: Iterable[tuple[str, object]] = (),
    ending: str = "stop",
    refusal: str | None = None,
    tokens: tuple[object, object] = (10, 1),
) -> object:
    """What a chat server answers; `top` are the likeliest tokens and their log-probabilities, if
    those are told."""
    listed = [{"token": token, "logprob": logprob} for token, logprob in top]
    steps = [{**listed[0], "top_logprobs": listed}] if listed else []
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": refusal},
        "logprobs": {"content": steps} if steps else None,
        "finish_reason": ending,
    }
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return {"choices": [choice], "usage": usage}
