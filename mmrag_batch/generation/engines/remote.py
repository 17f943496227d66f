"""An engine on a server elsewhere: its connections, and whom to blame for what is not answered.

What is asked, and how an answer reads, is a dialect's: `server.py`, `chat.py`.
"""

import asyncio
import base64
import io
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from mmrag_batch.errors import ConfigError
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines.api import Api, Dialect
from mmrag_batch.generation.engines.http import Refused, Server
from mmrag_batch.generation.supervisor import EngineDied, Supervisor
from mmrag_batch.records import Problem
from mmrag_batch.settings import PredictSettings

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

CONCURRENCY = 64


def open_remote(settings: PredictSettings, dialect: Dialect) -> Engine:
    """The server at `--endpoint`. Raises ConfigError without one, and what RemoteWorker raises."""
    if (endpoint := settings.endpoint) is None:
        raise ConfigError(
            f"--engine {settings.engine} needs --endpoint, as in --endpoint http://host:8000."
        )
    concurrency = settings.engine_rows or CONCURRENCY

    def connect() -> RemoteWorker:
        return RemoteWorker(
            endpoint,
            dialect,
            model=settings.model,
            key=os.environ.get("OPENAI_API_KEY"),
            connections=concurrency,
            row_timeout=settings.row_timeout,
        )

    return Supervisor(connect, window=concurrency, elsewhere=True)


class RemoteWorker:
    """A server, from when it is there until it goes away; see `supervisor.Worker`.

    Waits for it first. Raises what `Api.wait_for_model` raises.
    """

    def __init__(
        self,
        endpoint: str,
        dialect: Dialect,
        *,
        model: str | None,
        key: str | None,
        connections: int,
        row_timeout: float,
    ) -> None:
        self._server = Server(endpoint, key=key, connections=connections + 1)  # one to look
        self._dialect = dialect
        self._api = Api(self._server, dialect)
        self._row_timeout = row_timeout
        self._is_away = False
        self._asked: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()
        try:
            self.model: str = self._submit(self._wait_for_model(model)).result()
        except BaseException:
            self.close()
            raise

    def ask(self, request: Request, /) -> Future[Result]:
        """The future of the answer."""
        return self._submit(self._answer(request))

    def close(self) -> None:
        """Close the connections; what is still asked is given up."""
        self._submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _close(self) -> None:
        await asyncio.gather(*self._cancel_others(), return_exceptions=True)
        await self._server.close()
        await self._loop.shutdown_default_executor()

    async def _wait_for_model(self, name: str | None) -> str:
        self._register()
        return await self._api.wait_for_model(name)

    async def _answer(self, request: Request) -> Result:
        """A result; EngineDied where the server is away."""
        self._register()
        try:
            return await self._answer_or_blame(request)
        except EngineDied:
            self._is_away = True
            self._cancel_others()  # they may wait for ever for a machine that is gone
            raise
        except asyncio.CancelledError:
            if self._is_away:
                raise EngineDied from None
            raise

    async def _answer_or_blame(self, request: Request) -> Result:
        """A result, of which an error says that it is this request alone that fails."""
        if self._is_away:
            raise EngineDied
        try:
            async with asyncio.timeout(self._row_timeout):
                return await self._dialect.answer(request, self.model, self._ask)
        except TimeoutError:
            await self._api.check_model(self.model)
            message = f"The server answers others, but not this within {self._row_timeout:g} s."
            return Result(request.key, error=Problem("timeout", message))
        except Refused as error:
            message = f"The server could not answer: {error}"
            return Result(request.key, error=Problem("engine_failed", message))

    async def _ask(self, body: Mapping[str, object], read: Callable[[Any], T], /) -> T:
        return await self._api.ask(body, read, within=self._row_timeout)

    def _register(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    def _cancel_others(self) -> list["asyncio.Task[Any]"]:
        """Our tasks but the one that asks, on their way out. Those of the client's own are left to
        it: one that is cancelled before its first step leaves a coroutine that nobody awaits."""
        others = [task for task in self._asked if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        return others


async def data_uris(images: Iterable["Image"]) -> list[str]:
    """The images as data URIs, without loss: the server sees the same pixels."""
    return [await asyncio.to_thread(_data_uri, image) for image in images]


def _data_uri(image: "Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
