"""HTTP to a server elsewhere: one request, one answer, and what each failure says about it."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from mmrag_batch.errors import ConfigError, DeniedError

VERDICTS = frozenset({400, 413, 422})
"""Statuses by which a server that is there says that it does not take this request."""
TOO_MANY = 429
NOTHING_LEFT = b"insufficient_quota"
"""What is in an answer that says it of an account, which no wait mends."""
SILENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
"""What happens before a request is sent."""
TIMEOUT = httpx2.Timeout(None, connect=10.0)
"""A request waits in the server's queue for long; its total time is the caller's."""
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name, 0), seconds) for name, seconds in (
        ("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6),
    ) if hasattr(socket, name)),
)  # fmt: skip
"""A machine that went away without a word is noticed within two minutes."""
PLAIN = {"Accept-Encoding": "identity"}
"""Few bytes could unpack to many."""
VERSIONED = re.compile(r"/v\d")
"""In an endpoint that is whole, as https://host/v1beta/openai is: no /v1 comes behind it."""
MAX_BODY = 4 << 20
"""Bytes of an answer. A row's are some kilobytes, 200 or so for each token that is written; what
JSON makes of them may take 20 times as much memory."""


class Refused(Exception):  # noqa: N818  # what the server says about one request
    """The server is there and does not take this request; the message is its own."""


class Failed(Exception):  # noqa: N818  # whose fault it is, nobody knows yet
    """No answer. `by_request`: this request may be the reason, as it reached the server and no
    status says that the server is busy or away. `busy`: the server is there, and is asked too much.
    `wait`: seconds that it asks for."""

    def __init__(
        self, message: str, *, by_request: bool, busy: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(message)
        self.by_request = by_request
        self.busy = busy
        self.wait = wait


class Server:
    """The server at `endpoint`, such as http://host:8000; `key` is sent and never shown.

    Raises ConfigError where the endpoint is no address.
    """

    def __init__(self, endpoint: str, *, key: str | None, connections: int) -> None:
        self._key = key
        try:
            self._client = httpx2.AsyncClient(
                base_url=endpoint.rstrip("/").removesuffix("/v1"),
                headers=PLAIN | ({"Authorization": f"Bearer {key}"} if key else {}),
                transport=httpx2.AsyncHTTPTransport(
                    limits=httpx2.Limits(max_connections=connections), socket_options=KEEPALIVE
                ),
                timeout=TIMEOUT,
            )
        except httpx2.InvalidURL as error:
            raise ConfigError(f"--endpoint {endpoint}: {error}.") from None
        url = self._client.base_url
        self.name = f"{url.scheme}://{url.netloc.decode()}"
        self._prefix = "/v1" if VERSIONED.search(url.path) else ""

    async def get(self, path: str, *, within: float) -> Any:
        """The JSON at a path. Raises what `post` does."""
        return await self._send("GET", path, None, within)

    async def post(self, path: str, body: Mapping[str, object], *, within: float) -> Any:
        """The JSON that the server answers with, all of it in so many seconds.

        Raises Refused where it does not take this request, DeniedError where it does not take ours
        at all, Failed where there is no answer.
        """
        return await self._send("POST", path, body, within)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(
        self, method: str, path: str, body: Mapping[str, object] | None, within: float
    ) -> Any:
        try:
            async with (
                asyncio.timeout(within),
                self._client.stream(method, path.removeprefix(self._prefix), json=body) as response,
            ):
                content = bytearray()
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > MAX_BODY:
                        raise Failed(f"an answer of over {MAX_BODY} bytes", by_request=True)
        except TimeoutError:
            raise Failed(f"no answer within {within:g} s", by_request=True) from None
        except httpx2.RequestError as error:
            problem = f"{type(error).__name__}: {error}"
            raise Failed(problem, by_request=not isinstance(error, SILENT)) from None
        if response.is_success:
            try:
                return json.loads(content)
            except (ValueError, RecursionError) as error:
                raise Failed(f"an answer that is no JSON: {error}", by_request=True) from None
        raise self._error(response, content)

    def _error(self, response: httpx2.Response, content: bytes | bytearray) -> Exception:
        status, problem = response.status_code, _message(response, content)
        if self._key:
            problem = problem.replace(self._key, "***")
        if status in (401, 402, 403) or (status == TOO_MANY and NOTHING_LEFT in content):
            is_key = status in (401, 403) and "enable-scale-out" not in problem
            hint = " Set OPENAI_API_KEY to its key." if is_key else ""
            return DeniedError(f"The server at {self.name} refuses us: {problem}{hint}")
        if status in VERDICTS:
            return Refused(problem)
        wait = _seconds(response.headers.get("retry-after", ""))
        return Failed(problem, by_request=status == 500, busy=status == TOO_MANY, wait=wait)


def _seconds(asked: str) -> float:
    """What a Retry-After asks for, as a number or a date."""
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _message(response: httpx2.Response, content: bytes | bytearray) -> str:
    """What the server says is wrong; never the request, which may be long."""
    try:
        error = json.loads(content)["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        message = content[:2000].decode(errors="replace")
    shown = message[:500].encode(errors="replace").decode()  # half a surrogate pair fits nowhere
    return f"{response.status_code} {response.reason_phrase}: {shown}"
