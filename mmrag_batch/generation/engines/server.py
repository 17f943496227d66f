"""The `server` engine: the requests of the `vllm` engine, to a vLLM server elsewhere.

It speaks to `/inference/v1/generate`, which takes token ids with images, and not to the chat
endpoint: a chat server renders and tokenises by itself, and would read `<|eot_id|>` in a user's
text as the end of the turn. Start the server with `--enable-scale-out`, and on the `generator/` of
the same bundle, because the token ids are those of its tokenizer.
"""

import base64
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import ConfigError, UnavailableError
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines.http import Refused, Server
from mmrag_batch.generation.inflight import as_completed
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Problem
from mmrag_batch.settings import PredictSettings

if TYPE_CHECKING:
    from PIL.Image import Image

CONCURRENCY = 64
GENERATE = "/inference/v1/generate"
MAX_LOGPROBS = 20
"""Tokens that a server gives log-probabilities of, unless it was started with more."""
NO_NUMBER = -9999.0
"""What a server writes for a log-probability that JSON has no number for."""
log = logging.getLogger(__name__)


def open_engine(settings: PredictSettings, bundle: Bundle, _spec: PromptSpec) -> Engine:
    """A server at `--endpoint`. Raises ConfigError without one, and what ServerEngine raises."""
    if settings.endpoint is None:
        raise ConfigError("--engine server needs --endpoint, as in --endpoint http://host:8000.")
    return ServerEngine(
        settings.endpoint,
        bundle.generator_dir,
        model=settings.model,
        key=os.environ.get("OPENAI_API_KEY"),
        concurrency=settings.engine_rows or CONCURRENCY,
        max_new_tokens=settings.max_new_tokens,
    )


class ServerEngine:
    """A vLLM server; `concurrency` requests are asked at a time.

    Raises at once what `Server.post` raises, where the server or its model is not there.
    """

    def __init__(
        self,
        endpoint: str,
        generator_dir: Path,
        *,
        model: str | None,
        key: str | None,
        concurrency: int,
        max_new_tokens: int,
    ) -> None:
        self.window = concurrency
        self._max_new_tokens = max_new_tokens
        self._tokenizer = Tokenizer.from_file(str(generator_dir / "tokenizer.json"))
        self._server = Server(endpoint, key=key, connections=concurrency)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="server")
        try:
            self._model = self._served_model(model)
            self._generate([0], (), {"max_tokens": 1})  # is it allowed, and does it answer?
        except Refused as error:
            self.close()
            raise UnavailableError(f"{self._server.name} has no {GENERATE}: {error}") from None
        except BaseException:
            self.close()
            raise
        log.info("Asking %s of %s, %d at a time.", self._model, self._server.name, concurrency)

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Yield one result for each request, as they finish."""

        def ask(request: Request) -> Any:
            return self._threads.submit(self._answer, request)

        for _, future in as_completed(requests, ask, self.window):
            yield future.result()

    def close(self) -> None:
        """Close the connections; what is still asked is given up."""
        self._server.close()
        self._threads.shutdown(cancel_futures=True)

    def _served_model(self, model: str | None) -> str:
        names = [entry["id"] for entry in self._server.get("/v1/models")["data"]]
        if model is None:
            return str(names[0])
        if model not in names:
            raise UnavailableError(
                f"{self._server.name} serves {', '.join(names)}, not {model}; see --model."
            )
        return model

    def _answer(self, request: Request) -> Result:
        try:
            images = [_as_part(image) for image in request.images]
            if request.score:
                logits = self._logits(request.token_ids, images, request.score)
                return Result(request.key, logits=tuple(logits))
            sampling = {"max_tokens": self._max_new_tokens}
            ids = self._generate(request.token_ids, images, sampling)["token_ids"]
        except (Refused, ValueError) as error:
            message = f"The server could not answer: {error}"
            return Result(request.key, error=Problem("engine_failed", message))
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Result(request.key, text=text.strip())

    def _logits(
        self, token_ids: Sequence[int], images: list[dict[str, str]], tokens: tuple[int, ...]
    ) -> list[float]:
        """Log-probabilities of what may follow: logits but for a constant."""
        logits: dict[int, float] = {}
        for start in range(0, len(tokens), MAX_LOGPROBS):
            chunk = tokens[start : start + MAX_LOGPROBS]
            sampling = {
                "max_tokens": 1,
                "logprobs": len(chunk),
                "logprob_token_ids": chunk,
                "allowed_token_ids": chunk,  # the one that it samples counts as one of those asked
            }
            [step] = self._generate(token_ids, images, sampling)["logprobs"]["content"]
            logits |= {item["token_id"]: item["logprob"] for item in step["top_logprobs"]}
        if min(logits.values()) <= NO_NUMBER:
            raise ValueError("the model gave a logit that is not a finite number")
        return [logits[token] for token in tokens]

    def _generate(
        self,
        token_ids: Sequence[int],
        images: Sequence[dict[str, str]],
        sampling: Mapping[str, object],
    ) -> Any:
        """The server's only choice for a prompt."""
        body = {
            "model": self._model,
            "token_ids": token_ids,
            "content_parts": images or None,
            "sampling_params": {"temperature": 0.0, "detokenize": False, **sampling},
        }
        [choice] = self._server.post(GENERATE, body)["choices"]
        return choice


def _as_part(image: "Image") -> dict[str, str]:
    """The image as a data URI, without loss: the server sees the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "url": f"data:image/png;base64,{encoded}"}
