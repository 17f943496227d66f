"""Where stages run, and which places there are.

Adding one is a module with a function that opens it and an entry of `EXECUTORS`, or, from
elsewhere, a call of `add_executor`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from mmrag_batch.execute import local
from mmrag_batch.extras import requires
from mmrag_batch.plugs import load, pick
from mmrag_batch.records import Row
from mmrag_batch.settings import PredictSettings
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


class Kind(NamedTuple):
    """How an executor is opened: by a function, or by one named `module:function` that nothing
    imports before. `extra` is what to install."""

    open: Callable[[PredictSettings], Executor] | str
    extra: str | None = None


EXECUTORS: dict[str, Kind] = {
    "local": Kind(lambda _: local.run),
    "ray": Kind("mmrag_batch.execute.ray:open_ray", extra="ray"),
}


def add_executor(name: str, executor: Executor) -> None:
    """Let `--executor NAME` mean this one."""
    EXECUTORS[name] = Kind(lambda _: executor)


def name_executor(settings: PredictSettings) -> str:
    """Which executor these settings ask for: a Ray cluster that is named is one."""
    is_ray = settings.ray is not None and settings.executor == "local"
    return "ray" if is_ray else settings.executor


def open_executor(settings: PredictSettings) -> Executor:
    """The executor that these settings ask for. Raises ConfigError where there is none,
    UnavailableError where what it needs is not installed."""
    kind = pick(EXECUTORS, name_executor(settings), option="--executor")
    with requires(kind.extra):
        return load(kind.open)(settings)
