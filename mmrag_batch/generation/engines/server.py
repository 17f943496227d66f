"""The `server` engine: the requests of the `vllm` engine, to a vLLM server elsewhere.

It speaks to `/inference/v1/generate`, which takes token ids with images, and not to the chat
endpoint: a chat server renders and tokenises by itself, and would read `<|eot_id|>` in a user's
text as the end of the turn. Start the server with `--enable-scale-out`, and on the `generator/` of
the same bundle, because the token ids are those of its tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from mmrag_batch.bundle import Bundle
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines.api import Ask, finite
from mmrag_batch.generation.engines.remote import data_uris, open_remote
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import PredictSettings

T = TypeVar("T")

GENERATE = "/inference/v1/generate"
MAX_LOGPROBS = 20
"""Tokens that a server gives log-probabilities of, unless it was started with more."""


def open_engine(settings: PredictSettings, bundle: Bundle, _spec: PromptSpec) -> Engine:
    """A server at `--endpoint`. Raises what `open_remote` raises."""
    return open_remote(settings, TokenDialect(bundle.generator_dir, settings.max_new_tokens))


class TokenDialect:
    """Token ids and images, to vLLM; see `api.Dialect`."""

    path = GENERATE

    def __init__(self, generator_dir: Path, max_new_tokens: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(generator_dir / "tokenizer.json"))
        self._max_new_tokens = max_new_tokens

    async def check(self, model: str, ask: Ask, /) -> None:
        """Have the model write one token."""
        body = {"model": model, "token_ids": [0], "sampling_params": {"max_tokens": 1}}
        await ask(body, lambda _: None)

    async def answer(self, request: Request, model: str, ask: Ask, /) -> Result:
        """A result."""
        images = await data_uris(request.images)
        prompt = {
            "model": model,
            "token_ids": request.token_ids,
            "content_parts": [{"type": "image_url", "url": url} for url in images] or None,
        }

        async def generate(sampling: Mapping[str, object], read: Callable[[Any], T]) -> T:
            sampling = {"temperature": 0.0, "detokenize": False, **sampling}
            return await ask({**prompt, "sampling_params": sampling}, partial(_read_choice, read))

        if request.score:
            logits: list[float] = []
            for start in range(0, len(request.score), MAX_LOGPROBS):
                chunk = request.score[start : start + MAX_LOGPROBS]
                sampling: dict[str, object] = {
                    "max_tokens": 1,
                    "logprobs": len(chunk),
                    "logprob_token_ids": chunk,
                    "allowed_token_ids": chunk,  # the one that it samples is one of those asked
                }
                logits += await generate(sampling, partial(_scores, chunk))
            return Result(request.key, logits=finite(logits))  # but for a constant
        sampling = {"max_tokens": self._max_new_tokens, "logprobs": 0}  # of what it samples alone
        text, logprobs = await generate(sampling, self._written)
        return Result(request.key, text=text.strip(), logprobs=finite(logprobs))

    def _written(self, choice: Any) -> tuple[str, tuple[float, ...]]:
        """The text that was generated, and the log-probability of each of its tokens, the one that
        ends it included."""
        ids = [int(token) for token in choice["token_ids"]]
        logprobs = tuple(float(step["logprob"]) for step in choice["logprobs"]["content"])
        if not len(ids) == len(logprobs) > 0:
            raise ValueError(f"{len(ids)} tokens and {len(logprobs)} log-probabilities")
        return self._tokenizer.decode(ids, skip_special_tokens=True), logprobs


def _read_choice(read: Callable[[Any], T], answer: Any) -> T:
    [choice] = answer["choices"]
    return read(choice)


def _scores(tokens: Sequence[int], choice: Any) -> list[float]:
    [step] = choice["logprobs"]["content"]
    found = {item["token_id"]: float(item["logprob"]) for item in step["top_logprobs"]}
    return [found[token] for token in tokens]
