"""The server engine and a server that goes away, comes back, or fails at single rows."""

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mmrag_batch.errors import DeniedError, UnavailableError
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.engines import api
from mmrag_batch.generation.engines.api import LONGEST_HOLD, MODELS, PATIENCE, TRIES
from mmrag_batch.generation.engines.chat import COMPLETIONS, ChatDialect
from mmrag_batch.generation.engines.remote import RemoteWorker
from mmrag_batch.generation.engines.server import GENERATE, TokenDialect
from mmrag_batch.generation.supervisor import Supervisor
from tests.generation.conftest import GENERATOR
from tests.generation.engines.conftest import Clock
from tests.generation.engines.stand_in import Reply, StandIn

if TYPE_CHECKING:
    from tests.faults.commands import Commands

ROWS = 60
WINDOW = 8
NOT_ENDING = 0.0
"""An answer of 3 GiB."""


@pytest.fixture(params=["server", "chat"])
def open_engine(stand_in: StandIn, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened: list[Supervisor] = []
    chat = request.param == "chat"

    def connect(row_timeout: float) -> RemoteWorker:
        return RemoteWorker(
            stand_in.endpoint,
            ChatDialect(max_new_tokens=1) if chat else TokenDialect(GENERATOR, max_new_tokens=1),
            model=None,
            key=None,
            connections=WINDOW,
            row_timeout=row_timeout,
        )

    def open_engine(row_timeout: float = 600) -> Supervisor:
        opened.append(Supervisor(lambda: connect(row_timeout), window=WINDOW, elsewhere=True))
        return opened[-1]

    yield open_engine
    for engine in opened:
        engine.close()


def requests() -> Iterator[Request]:
    """Each row is known by its second token, or its text; the small question has none."""
    for row in range(ROWS):
        yield Request((row, 0), (1, row), messages=messages_of(row))


def messages_of(row: int) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": [{"type": "text", "text": f"row {row}"}]},)


def row_of(path: str, body: Any) -> int:
    """The row that is asked; -1 for all else."""
    if path == COMPLETIONS:
        word, _, row = body["messages"][0]["content"][0]["text"].partition(" ")
        return int(row) if word == "row" else -1
    return body["token_ids"][1] if path == GENERATE and len(body["token_ids"]) == 2 else -1


def answers(engine: Supervisor) -> dict[int, Result]:
    results = {result.key[0]: result for result in engine.generate(requests())}
    assert len(results) == ROWS
    return results


def errors(results: dict[int, Result]) -> dict[int, str]:
    return {row: result.error.code for row, result in results.items() if result.error}


@pytest.mark.parametrize("mood", ["refused", None, 500, 502, 503, 504, 404, b"<html>"])
def test_ten_minutes_of_absence_cost_no_row(
    stand_in: StandIn,
    clock: Clock,
    open_engine: Any,
    caplog: pytest.LogCaptureFixture,
    mood: "Reply | str",
) -> None:
    engine = open_engine()
    lock = threading.Lock()
    away: list[bool] = []

    def come_back() -> None:
        away[:] = [False]
        if mood == "refused":
            stand_in.start()

    def reply(path: str, body: Any) -> Reply:
        with lock:
            if row_of(path, body) == 20 and not away:
                away.append(True)
                clock.due, clock.then = clock.now + 600, come_back
                if mood == "refused":
                    stand_in.stop()
        if away == [True]:
            return None if mood == "refused" else mood  # type: ignore[return-value]
        return 200

    stand_in.reply = reply
    with caplog.at_level(logging.INFO):
        assert errors(answers(engine)) == {}
    assert clock.now >= 1600
    assert "does not answer" in caplog.text
    assert "has been away for" in caplog.text
    assert "there again, after" in caplog.text
    asked = Counter(row_of(*one) for one in stand_in.asked)
    assert 1 <= sum(asked[row] > 1 for row in range(ROWS)) <= WINDOW


def test_a_server_may_be_started_after_the_run(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    stand_in.stop()
    clock.due, clock.then = clock.now + 60, stand_in.start
    assert errors(answers(open_engine())) == {}
    assert 1060 <= clock.now < 1120


def test_a_server_that_stays_away_ends_the_run_without_a_last_wait(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: 503
    began = clock.now
    with pytest.raises(UnavailableError, match=f"did not answer for {PATIENCE:.0f} s"):
        answers(engine)
    looks = clock.now - began - PATIENCE  # the first ones, and a busy request's wait
    assert looks < 10


def test_a_row_that_fails_beside_others_is_one_error(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: 500 if row_of(path, body) == 7 else 200
    assert errors(answers(engine)) == {7: "engine_failed"}
    assert len(clock.waits) == TRIES - 1  # and none after the last
    assert clock.now < 1000 + 60


def test_what_no_row_is_blamed_for_is_a_server_that_answers_none(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: 200 if path == MODELS else 500
    with pytest.raises(UnavailableError, match="did not answer for"):
        answers(engine)


def test_a_row_that_takes_the_server_away_is_one_error(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    engine = open_engine()
    until = [0.0]

    def reply(path: str, body: Any) -> Reply:
        if row_of(path, body) == 30:
            until[0] = clock.now + 40
        return None if clock.now < until[0] else 200

    stand_in.reply = reply
    assert errors(answers(engine)) == {30: "engine_crashed"}
    assert Counter(row_of(*one) for one in stand_in.asked)[30] == 4  # together twice, alone twice


def test_k06_a_busy_server_is_asked_again_when_it_says_so(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    engine = open_engine()
    busy = [429] * 12

    def reply(path: str, body: Any) -> Reply:
        return busy.pop() if busy and row_of(path, body) == 5 else 200

    stand_in.reply, stand_in.retry_after = reply, "1000000000"
    assert errors(answers(engine)) == {}
    assert clock.now >= 1000 + 12 * LONGEST_HOLD
    assert max(clock.waits) < LONGEST_HOLD + 1


def test_all_requests_wait_where_one_is_told_to(stand_in: StandIn, open_engine: Any) -> None:
    engine = open_engine()
    told: list[float] = []
    asked: list[float] = []

    def reply(path: str, body: Any) -> Reply:
        asked.append(time.monotonic())
        if row_of(path, body) == 20 and not told:
            told.append(asked[-1])
            return 429
        return 200

    stand_in.reply, stand_in.retry_after = reply, "3"
    assert errors(answers(engine)) == {}
    held = [moment - told[0] for moment in asked if moment > told[0]]
    assert len(held) > 20
    assert not [moment for moment in held if 1 < moment < 3]


STRANGE = [
    b"{}",
    b"null",
    b'{"choices": null}',
    b'{"choices": []}',
    b'{"choices": [{"token_ids": null}]}',
    b'{"choices": [{"token_ids": [{}]}]}',
    b'{"choices": [{"token_ids": [], "logprobs": {"content": []}}]}',
    b'{"choices": [{"token_ids": [-1], "logprobs": {"content": [{"logprob": 0}]}}]}',
    b'{"choices": [{"token_ids": [Infinity], "logprobs": {"content": [{"logprob": 0}]}}]}',
    b'{"choices": [{"token_ids": [5], "logprobs": {"content": [{"logprob": 1%s}]}}]}'
    % (b"0" * 400),
    b'{"choices": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"choices": [{"token_ids": ["' + b"x" * 99_999 + b'"]}]}',
]


@pytest.mark.parametrize("strange", STRANGE)
def test_k06_a_row_whose_answer_has_a_strange_shape_is_one_error(
    stand_in: StandIn, clock: Clock, open_engine: Any, strange: bytes
) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: strange if row_of(path, body) == 7 else 200
    results = answers(engine)
    assert errors(results) == {7: "engine_failed"}
    error = results[7].error
    assert error is not None
    assert len(error.message) < 600


MODELS_OF_NOBODY = [
    b"null",
    b"[]",
    b'{"data": [{"id": "\\ud800"}]}',
    b'{"data": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"data": [{"id": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    b"<html>",
    b"[" * 100_000,
]


@pytest.mark.parametrize("strange", MODELS_OF_NOBODY)
def test_k06_a_server_that_is_none_ends_the_run(
    stand_in: StandIn, clock: Clock, open_engine: Any, strange: bytes
) -> None:
    stand_in.reply = lambda path, body: strange
    with pytest.raises(UnavailableError, match="did not answer for") as caught:
        open_engine()
    assert caught.value.exit_code == 69
    assert len(str(caught.value)) < 900


def test_k06_a_row_whose_answer_has_no_end_is_one_error(
    stand_in: StandIn, clock: Clock, open_engine: Any
) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: NOT_ENDING if row_of(path, body) == 7 else 200
    assert errors(answers(engine)) == {7: "engine_failed"}


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "-9999.0", "null", '"x"'])
def test_k06_a_logit_that_is_no_number_is_one_error(
    stand_in: StandIn, clock: Clock, open_engine: Any, number: str
) -> None:
    engine = open_engine()
    top = f'[{{"token_id": 5, "logprob": {number}}}, {{"token_id": 6, "logprob": 0}}]'
    body = f'{{"choices": [{{"logprobs": {{"content": [{{"top_logprobs": {top}}}]}}}}]}}'
    stand_in.reply = lambda path, asked: body.encode() if row_of(path, asked) == 7 else 200
    [result] = engine.generate([Request((7, 0), (1, 7), score=(5, 6))])
    assert result.error is not None
    assert result.error.code == "engine_failed"


def test_k06_a_row_that_is_not_answered_in_time_is_one_error(
    stand_in: StandIn, open_engine: Any
) -> None:
    engine = open_engine(row_timeout=2)
    stand_in.reply = lambda path, body: 0.01 if row_of(path, body) == 1 else 200
    results = list(engine.generate(islice(requests(), 3)))
    assert errors({result.key[0]: result for result in results}) == {1: "timeout"}
    assert len(results) == 3


def test_k06_a_server_that_hangs_is_away_and_no_row_to_blame(
    stand_in: StandIn, clock: Clock, open_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(row_timeout=0.5)
    monkeypatch.setattr(api, "LOOK_WITHIN", 0.02)
    monkeypatch.setattr(api, "PROBE_WITHIN", 0.02)
    monkeypatch.setattr(api, "LONGEST_LOOK", 300.0)
    stand_in.reply = lambda path, body: 0.01
    with pytest.raises(UnavailableError, match="no answer within"):
        answers(engine)


def test_a_key_that_is_taken_back_ends_the_run(stand_in: StandIn, open_engine: Any) -> None:
    engine = open_engine()
    stand_in.reply = lambda path, body: 401 if row_of(path, body) == 7 else 200
    with pytest.raises(DeniedError):
        answers(engine)


def test_closing_gives_up_what_is_asked_at_once(stand_in: StandIn, open_engine: Any) -> None:
    engine = open_engine()
    asked = threading.Event()

    def reply(path: str, body: Any) -> Reply:
        asked.set()
        return 0.01

    stand_in.reply = reply
    future = engine._workers[0].ask(Request((0, 0), (1, 2)))
    assert asked.wait(30)
    began = time.monotonic()
    engine.close()
    assert future.cancelled()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_whose_server_is_away_stops_at_once(
    stand_in: StandIn, commands: "Commands", tmp_path: Path, number: signal.Signals, code: int
) -> None:
    table = "id,question_text,choices\n" + "".join(f"r{n},What is {n}?,a;b\n" for n in range(50))
    (tmp_path / "in.csv").write_text(table)
    away = threading.Event()

    def reply(path: str, body: Any) -> Reply:
        if path == GENERATE and len(stand_in.asked) > 25:
            away.set()
        return 503 if away.is_set() else 200

    stand_in.reply = reply
    words = ["--engine", "server", "--endpoint", stand_in.endpoint, "--engine-rows", 2]
    running = commands.start(
        "predict", "in.csv", "out.csv", *words, "--grace", 900, folder=tmp_path
    )
    for _ in range(600):
        if "does not answer" in running.output:
            break
        time.sleep(0.1)
    assert "does not answer" in running.output, running.output
    running.send_signal(number)
    done = running.wait(within=60)  # the grace is 900
    assert done.code == code, done.output
    stand_in.reply = lambda path, body: 200
    again = commands.run("predict", "in.csv", "out.csv", *words, folder=tmp_path)
    assert again.code == 0, again.output
    assert "50 rows" in again.output
