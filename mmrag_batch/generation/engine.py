"""What generates: the one method that every engine has, and what goes in and comes out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mmrag_batch.generation.choices import Answer
from mmrag_batch.records import Problem

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One rendered prompt.

    `images` are those of its image tokens, in order. `options` are the answers to choose from, as
    token ids with the end token; empty for a free-form answer.
    """

    key: int
    token_ids: tuple[int, ...]
    images: tuple["Image", ...]
    options: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The answer to the request with that key: a text, one probability an option, or an error."""

    key: int
    text: str = ""
    probabilities: tuple[float, ...] = ()
    error: Problem | None = None


class Engine(Protocol):
    """Requests in, one result for each of them out, in any order.

    An engine may take up to `window` requests before it gives the result of the first. A request
    that fails becomes a result with an `error`; an engine that cannot go on raises.
    """

    window: int

    def generate(self, requests: Iterable[GenerationRequest], /) -> Iterator[GenerationResult]: ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used afterwards."""
        ...
