"""Where stages run, and which places there are.

Adding one is a module with a function and an entry of `EXECUTORS`, or, from elsewhere, a call of
`add_executor`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from mmrag_batch.plugs import load, pick
from mmrag_batch.records import Row
from mmrag_batch.stages import OpenStage


class Executor(Protocol):
    """Opens the stages, sends every row through them and has each kept once, in whatever order they
    come. No row is asked for before the stages are open.

    When `is_stopped` says so, no stage is given another row: those in its hands are finished and
    kept, the others are not. What a stage, `rows` or `keep` raises ends it and is raised by it.
    """

    def __call__(
        self,
        rows: Iterable[Row],
        stages: Sequence[OpenStage],
        keep: Callable[[Row], None],
        *,
        is_stopped: Callable[[], bool],
    ) -> None: ...


EXECUTORS: dict[str, Executor | str] = {"local": "mmrag_batch.execute.local:run"}


def add_executor(name: str, executor: Executor) -> None:
    """Let `--executor NAME` mean this one."""
    EXECUTORS[name] = executor


def find_executor(name: str) -> Executor:
    """The executor of that name. Raises ConfigError where there is none."""
    return load(pick(EXECUTORS, name, option="--executor"))
