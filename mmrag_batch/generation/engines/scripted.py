"""An engine without a model, for tests and dry runs: answers by a hash of the prompt's tokens."""

import hashlib
import os
import time
from array import array
from collections.abc import Iterable, Iterator
from operator import itemgetter

from mmrag_batch.bundle import Bundle
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.generation.engines import scripted_worker
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import in_batches

WINDOW = 32


def open_engine(settings: PredictSettings, _bundle: Bundle, _spec: PromptSpec) -> Engine:
    """The engine; in a bad mood where a script asks for it (`scripted_worker.py`)."""
    if (text := os.environ.get(scripted_worker.VARIABLE)) is None:
        return ScriptedEngine()
    script = scripted_worker.read_script(text)
    return Supervisor(
        lambda: scripted_worker.ScriptedWorker(script, answer),
        window=WINDOW,
        row_timeout=settings.row_timeout,
    )


class ScriptedEngine:
    """Gives the same answer to the same prompt, always.

    Results come out of order within a `window`, as those of a real engine do, each after `delay`
    seconds.
    """

    def __init__(self, *, window: int = WINDOW, delay: float = 0.0) -> None:
        self.window = window
        self._delay = delay

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Yield one result for each request."""
        for batch in in_batches(requests, self.window):
            for digest, request in sorted(
                ((_digest(one), one) for one in batch), key=itemgetter(0)
            ):
                if self._delay:
                    time.sleep(self._delay)
                yield answer(request, digest)

    def close(self) -> None:
        """There is nothing to give back."""


def answer(request: Request, digest: bytes | None = None) -> Result:
    """What this engine answers to a prompt."""
    digest = digest or _digest(request)
    if request.score:
        logits = [digest[index % len(digest)] / 64 for index in range(len(request.score))]
        return Result(request.key, logits=tuple(logits))
    logprobs = tuple(-byte / 1024 for byte in digest[:3])
    return Result(request.key, text=f"answer {digest.hex()[:8]}", logprobs=logprobs)


def _digest(request: Request) -> bytes:
    return hashlib.sha256(array("I", request.token_ids).tobytes()).digest()
