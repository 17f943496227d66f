"""On a Ray cluster: each GPU, or as many of a node as `gpus` says, gets a worker that has all
stages (`ray_worker.py`), and rows as it answers them; where there is none, each node gets one.

A worker that dies costs what it had in its hands, which is asked again (`assignments.py`), and one
is started in its place. Workers end with the process that started them.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmrag_batch.errors import ConfigError, MmragError, UnavailableError
from mmrag_batch.execute.assignments import Assignments
from mmrag_batch.execute.executor import Executor
from mmrag_batch.execute.ray_cluster import Place, connected, find_places
from mmrag_batch.execute.ray_worker import Message, Report, Terms, Worker, find_versions
from mmrag_batch.progress import Progress
from mmrag_batch.records import Row
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import STALLED, OpenStage

PASSED = ("AWS_", "GOOGLE_", "HF_", "OPENAI_", "QDRANT_", "SCRIPTED_")
"""How the variables begin that workers get, as what a stage does may depend on them."""
LOOK_EVERY = 0.5
"""Seconds between two looks whether the run is stopped."""
LOOK_AROUND_EVERY = 10.0
"""Seconds between two looks for places without a worker."""
MAX_DEATHS_IN_A_ROW = 5
"""Deaths in one place, without an answer in between, after which it gets no other worker."""
IS_NOT_THERE = "failed to import on the worker"
"""What Ray says of an actor whose class its node has not."""
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Hand:
    """A worker, as it is known here; `window` is 0 until its stages are open."""

    number: int
    name: str
    place: Place
    actor: Any
    window: int = 0
    is_stalled: bool = False


def open_ray(settings: PredictSettings) -> Executor:
    """The executor on the cluster that `settings.ray` names. Raises ConfigError for an address that
    is of no use."""
    address = settings.ray or "auto"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if "://" in address:
        raise ConfigError(
            f"--ray {address}: a run would end with the connection of a Ray client. Start it on a "
            "machine of the cluster with --ray auto; `ray job submit` does that from elsewhere."
        )
    gpus = 0 if settings.device == "cpu" else settings.gpus

    def run(
        rows: Iterable[Row],
        stages: Sequence[OpenStage],
        keep: Callable[[Row], None],
        *,
        is_stopped: Callable[[], bool],
    ) -> None:
        with connected(address), _Crew(Assignments(rows), stages, gpus) as crew:
            crew.work(keep, is_stopped)

    return run


class _Crew(ExitStack):
    """The workers of a run; they end with it."""

    def __init__(self, rows: Assignments, stages: Sequence[OpenStage], gpus: int) -> None:
        super().__init__()
        self._rows, self._gpus = rows, gpus
        environ = {name: text for name, text in os.environ.items() if name.startswith(PASSED)}
        level = logging.getLogger("mmrag_batch").getEffectiveLevel()
        self._terms = Terms(find_versions(), str(Path.cwd()), environ, level)
        self._stages = ray.put(cloudpickle.dumps(list(stages)))
        self._started = 0
        self._reports: dict[Any, _Hand] = {}
        """What each worker is to tell next."""
        self._deaths: Counter[Place] = Counter()
        """In a row."""
        self._last_words = ""
        self._waiting = self.enter_context(ExitStack())
        self._waiting.enter_context(Progress("Waiting for the first worker"))
        self.callback(STALLED.clear)

    def work(self, keep: Callable[[Row], None], is_stopped: Callable[[], bool]) -> None:
        """Have every row answered and kept. Raises what an executor does, and UnavailableError
        where there is nobody to answer."""
        looked = -LOOK_AROUND_EVERY
        while True:
            stopped = is_stopped()
            if stopped or self._rows.is_done:
                self._drop_unopened()
            elif monotonic() - looked >= LOOK_AROUND_EVERY:
                self._start_workers()
                looked = monotonic()
            if not self._reports:
                break
            for reference in ray.wait(list(self._reports), timeout=LOOK_EVERY)[0]:
                hand = self._reports.pop(reference)
                report = self._hear(hand, reference)
                if report is None:
                    looked = -LOOK_AROUND_EVERY
                    continue
                answered = pickle.loads(report.rows) if report.rows else []  # noqa: S301  # ours
                for row in self._rows.take(hand.number, answered):
                    self._deaths[hand.place] = 0
                    keep(row)
                if not report.has_ended:
                    self._tell(hand, stopped=stopped)
        if self._rows.is_done:
            for row in self._rows.end():
                keep(row)

    def _start_workers(self) -> None:
        """One in each place that has none. Raises UnavailableError if none has, nor gets any."""
        if not self._rows.is_waiting:
            return
        taken = {hand.place for hand in self._reports.values()}
        places = find_places(self._gpus)
        for place, host in places.items():
            if place in taken or self._deaths[place] >= MAX_DEATHS_IN_A_ROW:
                continue
            self._started += 1
            node = NodeAffinitySchedulingStrategy(place.node, soft=False)
            kind = ray.remote(num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=node)
            actor = kind(Worker).remote()
            hand = _Hand(self._started, f"worker {self._started} on {host}", place, actor)
            self.callback(ray.kill, actor)
            self._reports[actor.open.remote(self._terms, self._stages)] = hand
        if self._reports:
            return
        if self._last_words:
            raise UnavailableError(
                f"Workers die wherever they are started, {MAX_DEATHS_IN_A_ROW} times in a row "
                f"without an answer: {self._last_words} Ray's logs on their nodes "
                "(`session_latest/logs` in its temporary folder) have what they said. Then run the "
                "same command again."
            )
        raise UnavailableError(
            f"No node of the Ray cluster has a CPU for a worker, or the {self._gpus} GPUs that it "
            "is to have; `ray status` shows what they have. Add a node, or change --gpus, then run "
            "the same command again."
        )

    def _tell(self, hand: _Hand, *, stopped: bool) -> None:
        """What it is to do next."""
        if stopped or self._rows.is_done:
            message = Message(b"", end=True, stop=stopped)
        elif hand.window:
            rows, is_last = self._rows.give(hand.number, hand.window, 1 + len(self._reports))
            message = Message(pickle.dumps(rows) if rows else b"", is_last)
        else:
            message = Message(b"")
        self._reports[hand.actor.exchange.remote(message)] = hand

    def _hear(self, hand: _Hand, reference: Any) -> Report | None:
        """What a worker tells; None if it has died. Raises what a stage raised there."""
        try:
            report: Report = ray.get(reference)
        except RayTaskError as error:
            raise _blame(hand.name, error) from error
        except RayError as error:
            if IS_NOT_THERE in str(error):
                raise UnavailableError(
                    f"{hand.name}: mmrag-batch cannot be imported there: {_last_line(error)}. "
                    "Install the same on all nodes."
                ) from error
            self._bury(hand, error)
            return None
        for name, level, text in report.logged:
            logging.getLogger(name).log(level, "%s: %s", hand.name, text)
        hand.window, hand.is_stalled = report.window, report.is_stalled
        if hand.window:
            self._waiting.close()
        at_work = [one for one in (hand, *self._reports.values()) if one.window]
        is_stalled = bool(at_work) and all(one.is_stalled for one in at_work)
        (STALLED.set if is_stalled else STALLED.clear)()
        return report

    def _bury(self, hand: _Hand, error: RayError) -> None:
        ray.kill(hand.actor)  # it may only be out of reach
        rows = self._rows.lose(hand.number)
        self._deaths[hand.place] += 1
        self._last_words = f"{hand.name}: {_last_line(error)}"
        log.warning("%s has died; the %d rows it had are asked again.", hand.name, rows)
        log.debug("%s: %s", hand.name, error)

    def _drop_unopened(self) -> None:
        """Nobody needs those any more whose models are not loaded yet."""
        for reference, hand in list(self._reports.items()):
            if not hand.window:
                del self._reports[reference]
                ray.kill(hand.actor)


def _blame(who: str, error: RayTaskError) -> BaseException:
    """What a stage raised, with who it was."""
    cause = error.cause
    if isinstance(cause, MmragError):
        return type(cause)(f"{who}: {cause}")
    return cause if isinstance(cause, OSError) else error


def _last_line(error: RayError) -> str:
    """Of what Ray says, the first lines of which say where."""
    return str(error).splitlines()[-1].partition(" Some common causes")[0]
