"""What generates: the one method that every engine has, what goes in and comes out, and which
engines there are.

Adding an engine is a module with a function that opens it and a line in `ENGINES`, or, from
elsewhere, a call of `add_engine`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mmrag_batch.bundle import Bundle
from mmrag_batch.extras import requires
from mmrag_batch.plugs import load, pick
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Problem, Usage
from mmrag_batch.settings import PredictSettings

if TYPE_CHECKING:
    from PIL.Image import Image

Tokens = tuple[int, ...]
"""Token ids."""


class Request(NamedTuple):
    """One prompt: something is to be written after it or, with `score`, the logits of those tokens
    as the next one are asked for.

    `key` is a row's number, and which of the row's requests it is. `images` are those of the image
    tokens, in order. `messages` are what the row's prompt was rendered from; an engine that takes
    them has token ids of `rendering.Unrendered`.
    """

    key: tuple[int, int]
    token_ids: Tokens
    images: tuple["Image", ...] = ()
    score: Tokens = ()
    messages: tuple[Mapping[str, Any], ...] = ()


class Result(NamedTuple):
    """What came of the request with that key: a text, logits (up to a constant), or an error.

    `logprobs` belong to a text: the natural log of the probability, among all tokens, of each one
    that was generated, the end-of-text token included. Empty where the engine does not tell.
    `chosen` stands in place of logits where it does not tell those: the one of `score` that it
    wrote. `usage` is what the request cost, where somebody counts.
    """

    key: tuple[int, int]
    text: str = ""
    logits: tuple[float, ...] = ()
    error: Problem | None = None
    logprobs: tuple[float, ...] = ()
    chosen: int | None = None
    usage: Usage = Usage()


class Engine(Protocol):
    """Requests in, one result for each of them out, in any order.

    An engine may take up to `window` requests before it gives the result of the first. A request
    that fails becomes a result with an `error`; an engine that cannot go on raises.
    """

    window: int

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]: ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used afterwards."""
        ...


Open = Callable[[PredictSettings, Bundle, PromptSpec], Engine]
"""Raises UnavailableError where a package or a device is missing."""


class EngineKind(NamedTuple):
    """How an engine is opened: by a function, or by one named `module:function` that nothing
    imports before. `runs_bundle` says that its answers are those of the bundle's own generator, so
    that it may be exchanged for another one of which that is true; `extra` what to install;
    `takes_messages` that it needs nothing of the bundle's generator, its tokenizer included."""

    open: Open | str
    runs_bundle: bool = True
    extra: str | None = None
    takes_messages: bool = False


_ENGINES = "mmrag_batch.generation.engines"
ENGINES: dict[str, EngineKind] = {
    "vllm": EngineKind(f"{_ENGINES}.vllm:open_engine", extra="gpu"),
    "transformers": EngineKind(f"{_ENGINES}.transformers:open_engine", extra="cpu"),
    "server": EngineKind(f"{_ENGINES}.server:open_engine", runs_bundle=False, extra="server"),
    "chat": EngineKind(
        f"{_ENGINES}.chat:open_engine", runs_bundle=False, extra="server", takes_messages=True
    ),
    "scripted": EngineKind(f"{_ENGINES}.scripted:open_engine", runs_bundle=False),
}


def add_engine(name: str, open_engine: Open, *, runs_bundle: bool = False) -> None:
    """Let `--engine NAME` mean this engine."""
    ENGINES[name] = EngineKind(open_engine, runs_bundle)


def find_engine(name: str) -> EngineKind:
    """The engine of that name. Raises ConfigError where there is none."""
    return pick(ENGINES, name, option="--engine", also="auto")


def takes_messages(name: str) -> bool:
    """Whether an engine takes messages; `auto` is none that does."""
    return name != "auto" and find_engine(name).takes_messages


def open_engine(
    name: str, settings: PredictSettings, bundle: Bundle, spec: PromptSpec
) -> closing[Engine]:
    """A context manager of the engine of that name, closed in the end."""
    kind = find_engine(name)
    with requires(kind.extra):
        return closing(load(kind.open)(settings, bundle, spec))
