"""An engine without a model, for tests and dry runs: answers by a hash of the prompt's tokens."""

import hashlib
import time
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter

from mmrag_batch.generation.choices import softmax
from mmrag_batch.generation.engine import GenerationRequest, GenerationResult


class ScriptedEngine:
    """Gives the same answer to the same prompt, always.

    Results come out of order within a `window`, as those of a real engine do, each after `delay`
    seconds.
    """

    def __init__(self, *, window: int = 32, delay: float = 0.0) -> None:
        self.window = window
        self._delay = delay

    def generate(self, requests: Iterable[GenerationRequest], /) -> Iterator[GenerationResult]:
        """Yield one result for each request."""
        source = iter(requests)
        while batch := list(islice(source, self.window)):
            for digest, request in sorted(
                ((_digest(one), one) for one in batch), key=itemgetter(0)
            ):
                if self._delay:
                    time.sleep(self._delay)
                yield answer(request, digest)

    def close(self) -> None:
        """There is nothing to give back."""


def answer(request: GenerationRequest, digest: bytes | None = None) -> GenerationResult:
    """What this engine answers to a prompt."""
    digest = digest or _digest(request)
    if request.options:
        logits = [digest[place % len(digest)] / 64 for place in range(len(request.options))]
        return GenerationResult(request.key, probabilities=softmax(logits))
    return GenerationResult(request.key, text=f"answer {digest.hex()[:8]}")


def _digest(request: GenerationRequest) -> bytes:
    return hashlib.sha256(array("I", request.token_ids).tobytes()).digest()
