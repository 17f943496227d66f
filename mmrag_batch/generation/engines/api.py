"""The API of a server elsewhere: wait until it is there, ask, and ask again where that may help.

A server may be restarted at any time, by others, and a failure tells little of its reason. So
nothing is held against a request until the server answers another one right after it has failed.
Where it says that it is asked too much, all requests wait.
"""

import logging
import math
import random
from asyncio import Lock, sleep
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NoReturn, Protocol, TypeVar

from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.generation.engines.http import Failed, Refused, Server
from mmrag_batch.generation.supervisor import EngineDied
from mmrag_batch.stages import STALLED

T = TypeVar("T")

MODELS = "/v1/models"
PATIENCE = 900.0
"""Seconds that a server may be away. It loads a model of 11B in 20 to 130, and a machine that takes
the place of another one is there in ten minutes."""
LONGEST_LOOK = 5.0
"""Seconds between two looks for a server that is away; fewer at first."""
SAY_EVERY = 30.0
"""Seconds between two lines in the log about it."""
LOOKS = 3
"""A server that does not answer so many small questions, a second apart, is away."""
TRIES = 5
"""Failures of a request, beside a server that is there, before it may be at fault."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between two tries: they double from the first to the longest."""
LONGEST_HOLD = 300.0
"""Seconds that a server may ask us to wait."""
LOOK_WITHIN, PROBE_WITHIN = 10.0, 120.0
"""Seconds for a small answer: from the server's front, and from its model, which has a queue."""
STRANGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading an answer ends with that is not of the shape that was asked for."""
NO_NUMBER = -9999.0
"""What servers write for a log-probability that JSON has no number for, or that is tiny."""
log = logging.getLogger(__name__)


class Ask(Protocol):
    """Posts a body; what `read` finds in the answer."""

    async def __call__(self, body: Mapping[str, object], read: Callable[[Any], T], /) -> T: ...


class Dialect(Protocol):
    """What is asked of a server, and how its answers are read. `path` is where it is posted."""

    path: str

    async def check(self, model: str, ask: Ask, /) -> None:
        """Have the model write a token. Raises Refused where it takes no question of this kind."""
        ...

    async def answer(self, request: Request, model: str, ask: Ask, /) -> Result:
        """A result. Raises Refused where the server takes this request not."""
        ...


class Api:
    """The API of one server, used by one event loop."""

    def __init__(self, server: Server, dialect: Dialect) -> None:
        self._server = server
        self._dialect = dialect
        self._looking = Lock()
        self._last_seen = -math.inf
        self._held_until = -math.inf

    async def wait_for_model(self, name: str | None) -> str:
        """The name of a model, by default the first, as soon as it answers.

        Raises UnavailableError where it does not in `PATIENCE` seconds, or is not among those
        served; DeniedError where our key is not taken.
        """
        begun, said, wait = monotonic(), -math.inf, 0.1
        try:
            while True:
                try:
                    model = await self._find_model(name)
                    await self._probe(model)
                except Failed as error:
                    away = monotonic() - begun
                    if away >= PATIENCE:
                        self._give_up(away, error)
                    if away - said >= SAY_EVERY:
                        said = away
                        self._say(away, error)
                    asked = min(error.wait, LONGEST_HOLD)
                    await pause(min(max(wait, asked), PATIENCE - away))
                    wait = min(LONGEST_LOOK, 2 * wait)
                else:
                    if STALLED.is_set():
                        log.warning("It is there again, after %.0f s.", monotonic() - begun)
                    return model
        finally:
            STALLED.clear()

    async def ask(
        self, body: Mapping[str, object], read: Callable[[Any], T], *, within: float
    ) -> T:
        """What `read` finds in the server's answer.

        Raises Refused where this request is at fault, EngineDied where the server is away; goes on
        for ever where neither is so, and other requests are answered.
        """
        failures, wait = 0, FIRST_WAIT
        while True:
            while (held := self._held_until - monotonic()) > 0:
                await pause(held + random.random())  # or all would come at once
            try:
                return await self._post(body, read, within)
            except Failed as error:
                if not error.busy:
                    await self._check_there()
                failures += error.by_request
                if failures == TRIES:
                    await self.check_model(str(body["model"]))
                    raise Refused(f"{error}; {TRIES} times, but it answers others") from None
                seconds = wait * random.uniform(0.5, 1)
                if error.busy or error.wait:
                    seconds = max(seconds, min(error.wait, LONGEST_HOLD))
                    self._held_until = max(self._held_until, monotonic() + seconds)
                else:
                    await pause(seconds)
                wait = min(LONGEST_WAIT, 2 * wait)

    async def check_model(self, model: str) -> None:
        """Raise EngineDied where the model does not answer a small question."""
        try:
            await self._probe(model)
        except Failed as error:
            log.debug("%s: %s", self._server.name, error)
            raise EngineDied from None

    async def _post(self, body: Mapping[str, object], read: Callable[[Any], T], within: float) -> T:
        answer = await self._server.post(self._dialect.path, body, within=within)
        try:
            return read(answer)
        except STRANGE as error:
            what = f"a strange answer: {repr(error)[:300]}"
            raise Failed(what, by_request=True) from None

    async def _check_there(self) -> None:
        """Raise EngineDied where nobody is there. Whoever asks at the same time shares the look."""
        async with self._looking:
            if monotonic() - self._last_seen < 1:
                return
            for look in range(LOOKS):
                if look:
                    await pause(1)
                try:
                    await self._server.get(MODELS, within=LOOK_WITHIN)
                except (Failed, Refused) as error:
                    log.debug("%s: %s", self._server.name, error)
                    is_there = isinstance(error, Failed) and error.busy
                else:
                    is_there = True
                if is_there:
                    self._last_seen = monotonic()
                    return
            raise EngineDied

    async def _find_model(self, name: str | None) -> str:
        try:
            answer = await self._server.get(MODELS, within=LOOK_WITHIN)
            names: list[str] = [entry["id"] for entry in answer["data"]]
            "".join(names).encode()  # as they are sent and shown
            first = names[0]
        except (*STRANGE, Refused) as error:
            raise Failed(f"{MODELS}: {repr(error)[:300]}", by_request=False) from None
        if name is not None and name not in names:
            served = ", ".join(names[:20]) + (" and others" if len(names) > 20 else "")
            raise UnavailableError(f"{self._server.name} serves {served}, not {name}; see --model.")
        return first if name is None else name

    async def _probe(self, model: str) -> None:
        """Have the model write one token. Raises Failed where it does not."""

        async def ask_once(body: Mapping[str, object], read: Callable[[Any], T], /) -> T:
            return await self._post(body, read, PROBE_WITHIN)

        try:
            await self._dialect.check(model, ask_once)
        except Refused as error:
            where = f"{self._server.name}{self._dialect.path}"
            raise UnavailableError(f"{where} takes no small question: {error}") from None

    def _say(self, away: float, error: Failed) -> None:
        name = self._server.name
        if not STALLED.is_set():
            STALLED.set()
            log.warning("The server at %s does not answer: %s. Waiting for it.", name, error)
        else:
            message = "The server at %s has been away for %.0f of at most %.0f s: %s."
            log.info(message, name, away, PATIENCE, error)

    def _give_up(self, away: float, error: Failed) -> NoReturn:
        raise UnavailableError(
            f"The server at {self._server.name} did not answer for {away:.0f} s: {error}. Check "
            "--endpoint and the server's log, then run the same command again."
        )


def finite(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Log-probabilities that are numbers. Raises Refused for any other; a little over 0 is
    rounding."""
    if not all(NO_NUMBER < value < 1 for value in logprobs):
        raise Refused("the model gave a logit that is not a finite number")
    return tuple(logprobs)


async def pause(seconds: float) -> None:
    """Wait; a name of its own, for tests with a clock of theirs."""
    await sleep(seconds)
