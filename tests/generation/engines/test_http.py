"""What a client makes of a server that is busy, broken, gone, endless or unwilling."""

import asyncio
import gzip
import time
import tracemalloc
from typing import Any

import httpx2
import pytest

from mmrag_batch.errors import ConfigError, DeniedError
from mmrag_batch.generation.engines.api import MODELS
from mmrag_batch.generation.engines.http import MAX_BODY, Failed, Refused, Server
from mmrag_batch.generation.engines.server import GENERATE
from tests.generation.engines.stand_in import Reply, StandIn

KEY = "secret-key"
BODY = {"sampling_params": {"max_tokens": 1}}


def post(stand_in: StandIn, *replies: Reply, within: float = 30.0) -> Any:
    """The last of as many answers as there are replies, over one client."""
    left = list(replies)
    stand_in.reply = lambda path, body: left.pop(0)

    async def ask() -> Any:
        server = Server(stand_in.endpoint, key=KEY, connections=2)
        try:
            for _ in replies:
                answer = await server.post(GENERATE, BODY, within=within)
            return answer
        finally:
            await server.close()

    return asyncio.run(ask())


def test_an_answer_is_what_the_server_says(stand_in: StandIn) -> None:
    assert post(stand_in, 200, 200)["choices"][0]["token_ids"] == [100]
    assert stand_in.asked == [(GENERATE, BODY)] * 2
    assert stand_in.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_verdict_is_one(stand_in: StandIn, status: int) -> None:
    with pytest.raises(Refused, match=f"{status} .*: mood"):
        post(stand_in, status)


@pytest.mark.parametrize("status", [301, 404, 408, 429, 502, 503, 504])
def test_what_says_nothing_about_a_request_is_not_held_against_it(
    stand_in: StandIn, status: int
) -> None:
    with pytest.raises(Failed, match=f"{status} .*: mood") as caught:
        post(stand_in, status)
    assert not caught.value.by_request


BROKEN: dict[str, Reply] = {
    "an error of the server": 500,
    "a lost connection": None,
    "a page": b"<html>We will be back soon.</html>",
    "an answer that nests without end": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "nothing": b"",
    "a number of a million digits": b"9" * 10**6,
    "an answer that was packed": gzip.compress(b'{"choices": []}'),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_k06_what_may_be_the_fault_of_a_request_is_said_so(stand_in: StandIn, broken: str) -> None:
    with pytest.raises(Failed) as caught:
        post(stand_in, BROKEN[broken])
    assert caught.value.by_request


def test_a_server_that_is_not_there_says_nothing_about_a_request(stand_in: StandIn) -> None:
    stand_in.stop()
    with pytest.raises(Failed, match="ConnectError") as caught:
        post(stand_in, 200)
    assert not caught.value.by_request


def test_k06_a_dribbling_answer_ends_in_time(stand_in: StandIn) -> None:
    began = time.monotonic()
    with pytest.raises(Failed, match=r"no answer within 0\.3 s"):
        post(stand_in, 0.01, within=0.3)
    assert time.monotonic() - began < 20


def test_k06_an_answer_of_3_gib_is_not_read_to_its_end(stand_in: StandIn) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Failed, match=f"over {MAX_BODY} bytes") as caught:
            post(stand_in, 0.0)
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BODY
    finally:
        tracemalloc.stop()
    assert caught.value.by_request


@pytest.mark.parametrize(
    ("asked", "wait"), [("7", 7.0), ("0", 0.0), ("1000000000", 1e9), ("1e9", 0.0), ("soon", 0.0)]
)
def test_k06_the_server_says_how_long_to_wait(stand_in: StandIn, asked: str, wait: float) -> None:
    stand_in.retry_after = asked
    with pytest.raises(Failed) as caught:
        post(stand_in, 503)
    assert caught.value.wait == wait


def test_a_server_may_say_until_when_to_wait(stand_in: StandIn) -> None:
    waits = []
    for year in (2000, 2150):
        stand_in.retry_after = f"Fri, 01 Jan {year} 00:00:00 GMT"
        with pytest.raises(Failed) as caught:
            post(stand_in, 503)
        waits.append(caught.value.wait)
    assert waits[0] == 0
    assert waits[1] > 10**9


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("", "/v1/models"),
        ("/", "/v1/models"),
        ("/v1", "/v1/models"),
        ("/v1/", "/v1/models"),
        ("/proxy", "/proxy/v1/models"),
        ("/api/v3", "/api/v3/models"),
        ("/v1beta/openai/", "/v1beta/openai/models"),
    ],
)
def test_an_endpoint_is_a_host_or_what_a_service_calls_its_base(
    stand_in: StandIn, endpoint: str, asked: str
) -> None:
    stand_in.reply = lambda path, body: b"{}"

    async def ask() -> None:
        server = Server(stand_in.endpoint + endpoint, key=None, connections=1)
        try:
            await server.get(MODELS, within=30)
        finally:
            await server.close()

    asyncio.run(ask())
    assert stand_in.asked == [(asked, None)]


def test_k06_what_a_server_says_of_an_error_can_be_written_down(stand_in: StandIn) -> None:
    server = Server("http://host", key=None, connections=1)
    said = b'{"error": {"message": "\\ud800' + b"x" * 9_999 + b'"}}'
    message = str(server._error(httpx2.Response(400), said))
    assert message.isascii()
    assert len(message) < 600


def test_a_server_that_is_asked_too_much_is_there(stand_in: StandIn) -> None:
    with pytest.raises(Failed) as caught:
        post(stand_in, 429)
    assert caught.value.busy


@pytest.mark.parametrize(
    "reply", [402, (429, b'{"error": {"message": "mood", "code": "insufficient_quota"}}')]
)
def test_an_account_with_nothing_left_ends_the_run(stand_in: StandIn, reply: Reply) -> None:
    with pytest.raises(DeniedError, match=r"refuses us: .*mood") as caught:
        post(stand_in, reply)
    assert "OPENAI_API_KEY" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_does_not_know_us_ends_the_run(stand_in: StandIn, status: int) -> None:
    with pytest.raises(DeniedError, match="OPENAI_API_KEY"):
        post(stand_in, status)


def test_a_key_that_is_echoed_is_not_shown() -> None:
    server = Server("http://host", key=KEY, connections=1)
    response = httpx2.Response(401)
    assert KEY not in str(server._error(response, f"no such key: {KEY}".encode()))


def test_an_address_is_shown_without_its_password_and_a_wrong_one_refused() -> None:
    server = Server("http://user:password@host:1/v1/", key=None, connections=1)
    assert server.name == "http://host:1"
    with pytest.raises(ConfigError, match="--endpoint"):
        Server("http://host:port", key=None, connections=1)
