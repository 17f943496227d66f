"""The `server` engine: the requests of the `vllm` engine, to a vLLM server elsewhere.

It speaks to `/inference/v1/generate`, which takes token ids with images, and not to the chat
endpoint: a chat server renders and tokenises by itself, and would read `<|eot_id|>` in a user's
text as the end of the turn. Start the server with `--enable-scale-out`, and on the `generator/` of
the same bundle, because the token ids are those of its tokenizer.
"""

import asyncio
import base64
import io
import math
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import Tokenizer

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import ConfigError
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines.http import Refused, Server
from mmrag_batch.generation.engines.vllm_api import VllmApi
from mmrag_batch.generation.supervisor import EngineDied, Supervisor
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Problem
from mmrag_batch.settings import PredictSettings

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

CONCURRENCY = 64
MAX_LOGPROBS = 20
"""Tokens that a server gives log-probabilities of, unless it was started with more."""
NO_NUMBER = -9999.0
"""What a server writes for a log-probability that JSON has no number for."""


def open_engine(settings: PredictSettings, bundle: Bundle, _spec: PromptSpec) -> Engine:
    """A server at `--endpoint`. Raises ConfigError without one, and what VllmServer raises."""
    if settings.endpoint is None:
        raise ConfigError("--engine server needs --endpoint, as in --endpoint http://host:8000.")
    concurrency = settings.engine_rows or CONCURRENCY
    connect = partial(
        VllmServer,
        settings.endpoint,
        bundle.generator_dir,
        model=settings.model,
        key=os.environ.get("OPENAI_API_KEY"),
        connections=concurrency,
        max_new_tokens=settings.max_new_tokens,
        row_timeout=settings.row_timeout,
    )
    return Supervisor(connect, window=concurrency, elsewhere=True)


class VllmServer:
    """A server, from when it is there until it goes away; see `supervisor.Worker`.

    Waits for it first. Raises what `VllmApi.wait_for_model` raises.
    """

    def __init__(
        self,
        endpoint: str,
        generator_dir: Path,
        *,
        model: str | None,
        key: str | None,
        connections: int,
        max_new_tokens: int,
        row_timeout: float,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(generator_dir / "tokenizer.json"))
        self._server = Server(endpoint, key=key, connections=connections + 1)  # one to look
        self._api = VllmApi(self._server)
        self._max_new_tokens = max_new_tokens
        self._row_timeout = row_timeout
        self._is_away = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()
        try:
            self.model: str = self._submit(self._api.wait_for_model(model)).result()
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
        await asyncio.gather(*_cancel_others(), return_exceptions=True)
        await self._server.close()
        await self._loop.shutdown_default_executor()

    async def _answer(self, request: Request) -> Result:
        """A result; EngineDied where the server is away."""
        try:
            return await self._answer_or_blame(request)
        except EngineDied:
            self._is_away = True
            _cancel_others()  # they may wait for ever for a machine that is gone
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
                return await self._answer_in_time(request)
        except TimeoutError:
            await self._api.check_model(self.model)
            message = f"The server answers others, but not this within {self._row_timeout:g} s."
            return Result(request.key, error=Problem("timeout", message))
        except Refused as error:
            message = f"The server could not answer: {error}"
            return Result(request.key, error=Problem("engine_failed", message))

    async def _answer_in_time(self, request: Request) -> Result:
        images = [await asyncio.to_thread(_as_part, image) for image in request.images]
        if request.score:
            logits = await self._logits(request.token_ids, images, request.score)
            return Result(request.key, logits=logits)
        sampling = {"max_tokens": self._max_new_tokens, "logprobs": 0}  # of what it samples alone
        text, logprobs = await self._generate(request.token_ids, images, sampling, self._written)
        return Result(request.key, text=text.strip(), logprobs=_numbers(logprobs))

    def _written(self, choice: Any) -> tuple[str, tuple[float, ...]]:
        """The text that was generated, and the log-probability of each of its tokens, the one that
        ends it included."""
        ids = [int(token) for token in choice["token_ids"]]
        logprobs = tuple(float(step["logprob"]) for step in choice["logprobs"]["content"])
        if not len(ids) == len(logprobs) > 0:
            raise ValueError(f"{len(ids)} tokens and {len(logprobs)} log-probabilities")
        return self._tokenizer.decode(ids, skip_special_tokens=True), logprobs

    async def _logits(
        self, token_ids: Sequence[int], images: list[dict[str, str]], tokens: tuple[int, ...]
    ) -> tuple[float, ...]:
        """Log-probabilities of what may follow: logits but for a constant."""
        logits: list[float] = []
        for start in range(0, len(tokens), MAX_LOGPROBS):
            chunk = tokens[start : start + MAX_LOGPROBS]
            sampling = {
                "max_tokens": 1,
                "logprobs": len(chunk),
                "logprob_token_ids": chunk,
                "allowed_token_ids": chunk,  # the one that it samples counts as one of those asked
            }
            logits += await self._generate(token_ids, images, sampling, partial(_scores, chunk))
        return _numbers(logits)

    async def _generate(
        self,
        token_ids: Sequence[int],
        images: Sequence[dict[str, str]],
        sampling: Mapping[str, object],
        read: Callable[[Any], T],
    ) -> T:
        body = {
            "model": self.model,
            "token_ids": token_ids,
            "content_parts": images or None,
            "sampling_params": {"temperature": 0.0, "detokenize": False, **sampling},
        }
        return await self._api.generate(body, read, within=self._row_timeout)


def _cancel_others() -> list["asyncio.Task[Any]"]:
    """All tasks of this loop but the one that asks, on their way out."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    return others


def _scores(tokens: Sequence[int], choice: Any) -> list[float]:
    [step] = choice["logprobs"]["content"]
    found = {item["token_id"]: float(item["logprob"]) for item in step["top_logprobs"]}
    return [found[token] for token in tokens]


def _numbers(logprobs: Sequence[float]) -> tuple[float, ...]:
    if not all(NO_NUMBER < value < math.inf for value in logprobs):
        raise Refused("the model gave a logit that is not a finite number")
    return tuple(logprobs)


def _as_part(image: "Image") -> dict[str, str]:
    """The image as a data URI, without loss: the server sees the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "url": f"data:image/png;base64,{encoded}"}
