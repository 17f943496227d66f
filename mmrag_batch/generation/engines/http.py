"""A vLLM server elsewhere: requests over HTTP, tried again where that may help."""

import logging
import random
from collections.abc import Mapping
from threading import Event
from typing import Any

import httpx2

from mmrag_batch.errors import DeniedError, UnavailableError

ATTEMPTS = 8
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds. Waits double from the first to the longest: all attempts together take a minute."""
TRANSIENT = frozenset({408, 429, 502, 503, 504})
"""Statuses that say nothing about the request."""
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
"""A request may wait in the server's queue for long."""
log = logging.getLogger(__name__)


class Refused(Exception):  # noqa: N818  # what the server says about one request
    """The server cannot answer this request; the message is its own."""


class Server:
    """The server at `endpoint`, such as http://host:8000; `key` is sent and never shown.

    May be used by many threads at once.
    """

    def __init__(self, endpoint: str, *, key: str | None, connections: int) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx2.Client(
            base_url=endpoint.rstrip("/").removesuffix("/v1"),
            headers=headers,
            limits=limits,
            timeout=TIMEOUT,
        )
        url = self._client.base_url
        self.name = f"{url.scheme}://{url.netloc.decode()}"
        self._closed = Event()

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """The JSON that the server answers with.

        Raises Refused where it does not take this request, DeniedError where it does not take ours
        at all, UnavailableError where it cannot be reached however long we wait.
        """
        return self._send("POST", path, body)

    def close(self) -> None:
        """Close all connections; whoever waits for an answer gets an error."""
        self._closed.set()
        self._client.close()

    def _send(self, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                response = self._client.request(method, path, json=body)
            except httpx2.TransportError as error:
                problem, retry_after = f"{type(error).__name__}: {error}", ""
            else:
                if response.is_success:
                    return response.json()
                problem, retry_after = _message(response), response.headers.get("retry-after", "")
                is_last = attempt == ATTEMPTS - 1
                if response.status_code not in TRANSIENT and (
                    response.status_code < 500 or is_last
                ):
                    raise self._refusal(response.status_code, problem)
            self._wait(attempt, retry_after, problem)
        raise UnavailableError(
            f"The server at {self.name} did not answer {ATTEMPTS} times in a row: {problem} "
            "Check --endpoint and the server's log, then run the same command again."
        )

    def _refusal(self, status: int, problem: str) -> Exception:
        if status in (401, 403):
            hint = "" if "enable-scale-out" in problem else " Set OPENAI_API_KEY to its key."
            return DeniedError(f"The server at {self.name} refuses us: {problem}{hint}")
        return Refused(problem)

    def _wait(self, attempt: int, retry_after: str, problem: str) -> None:
        """Wait as long as the server asked for, or longer each time; not at all once closed."""
        delay = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
        if retry_after.isdecimal():
            delay = min(LONGEST_WAIT, float(retry_after))
        log.debug("%s: %s; trying again in %.1f s.", self.name, problem, delay)
        if self._closed.wait(delay):
            raise UnavailableError("The connection was closed.")


def _message(response: httpx2.Response) -> str:
    """What the server says is wrong; never the request, which may be long."""
    try:
        error = response.json()["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        message = response.text
    return f"{response.status_code} {response.reason_phrase}: {str(message)[:500]}"
