"""Where figures go besides files: TensorBoard, Weights & Biases, MLflow or Trackio, by accelerate.

None of them starts because it is installed. One that is asked for may want a network, a login or a
server that is slow: it works in a thread of its own, and what it cannot do is a warning. So it
neither holds up nor ends what it watches, whose figures are in files as well.
"""

import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal
from uuid import uuid4

from mmrag_batch.declare import setting, word
from mmrag_batch.errors import UnavailableError
from mmrag_batch.masking import mask

log = logging.getLogger(__name__)

TrackerName = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = "mmrag-batch"
PATIENCE = 60
"""Seconds that a tracker is waited for in the end."""


def check_tracker(name: TrackerName) -> None:
    """Raise UnavailableError unless what this tracker needs is installed."""
    from mmrag_batch.machine import install, pip  # which `--help` does without

    if name != "none" and importlib.util.find_spec(name) is None:
        raise UnavailableError(f"{name} is not installed. Run `{pip()} install {name}`.")
    if name != "none" and importlib.util.find_spec("accelerate") is None:
        raise UnavailableError(f"accelerate is not installed. Run `{install('train')}`.")


def tracker_setting() -> Any:
    """Declares a setting that names a tracker. One that is not installed is an UnavailableError
    where the setting is read, before anything heavy is loaded."""
    known = word(TrackerName)

    def holds(name: TrackerName) -> object:
        if is_known := known.holds(name):
            check_tracker(name)
        return is_known

    return setting(known._replace(holds=holds), "none", "Where figures go besides `metrics.jsonl`.")


class Tracker:
    """One run, as one tracker keeps it; what it keeps here lies in `folder`.

    `config` is shown beside its figures, secrets masked. `state` is a file that says which run it
    is: where it is there, the run `goes_on`, and its figures are added to its curves. After
    `close`, `problem` says what went wrong first, if anything did.
    """

    def __init__(
        self,
        name: TrackerName,
        folder: Path,
        title: str,
        config: Mapping[str, Any],
        state: Path | None = None,
    ) -> None:
        check_tracker(name)
        self.problem: str | None = None
        known = _read(state) if state else {}
        self.goes_on = known.get("tracker") == name
        self._name, self._folder, self._title, self._state = name, folder, title, state
        self._run = known["run"] if self.goes_on else uuid4().hex[:8]
        self._config = {
            key: mask(value) if isinstance(value, str) else value for key, value in config.items()
        }
        self._figures: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._is_open = threading.Event()
        with redirect_stdout(sys.stderr):  # what they say is no result of a command
            self._thread.start()
            self._is_open.wait(PATIENCE)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures on, at once or in a while."""
        self._figures.put(({mask(name): value for name, value in figures.items()}, step))

    def close(self) -> None:
        """Say that the run is finished, and wait until all is sent, within limits."""
        self._figures.put(None)
        with redirect_stdout(sys.stderr):
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._warn(f"has not taken all figures within {PATIENCE} s")

    def _work(self) -> None:
        try:
            tracker = self._open()
        except Exception as error:  # whatever it may be: only figures are lost
            self._warn(f"gets no figures of this run: {error}")
            return
        finally:
            self._is_open.set()
        while (entry := self._figures.get()) is not None:
            try:
                tracker.log(entry[0], step=entry[1])
            except Exception as error:  # it may work again later
                self._warn(f"did not take the figures of step {entry[1]}: {error}")
        try:
            tracker.finish()
        except Exception as error:
            self._warn(f"did not finish: {error}")

    def _warn(self, problem: str) -> None:
        """Say what went wrong first; a server that is away would say the same at every step."""
        if self.problem is None:
            self.problem = mask(f"{self._name} {problem}")
            log.warning("%s", self.problem)

    def _open(self) -> Any:
        from accelerate import PartialState, tracking

        PartialState()  # without it not all of them can log
        name = f"{self._title}-{self._run}"
        tracker: Any
        if self._name == "tensorboard":
            tracker = tracking.TensorBoardTracker(name, self._folder / "tensorboard")
            tracker.start()
        elif self._name == "mlflow":
            experiment, run = PROJECT, self._run if self.goes_on else None
            tracker = tracking.MLflowTracker(experiment, run_id=run, run_name=name)
            tracker.start()
            self._run = tracker.tracker.info.run_id
        elif self._name == "trackio":
            project = os.environ.get("TRACKIO_PROJECT", PROJECT)
            tracker = tracking.TrackioTracker(
                project, name=name, resume="allow", config=self._config
            )
            tracker.start()
        else:
            tracker = self._open_wandb(name)
        if not self.goes_on:  # Trackio takes settings at each start alone
            if self._name == "tensorboard":  # its table of settings would be a run of its own
                tracker.log({"config": json.dumps(self._config, indent=1)}, step=0)
            elif self._name != "trackio":
                tracker.store_init_configuration(self._config)
        if self._state:
            self._state.write_text(json.dumps({"tracker": self._name, "run": self._run}))
        return tracker

    def _open_wandb(self, name: str) -> Any:
        """As WANDB_MODE says; else, without a login or a network, in files that can be sent later.
        It must not ask for a key: nobody may be there to type one."""
        import wandb

        mode = os.environ.get("WANDB_MODE")
        problem: object = "nobody is logged in"
        try:
            if mode or wandb.login(prompt=False):
                return self._start_wandb(name, mode or "online")
        except wandb.Error as error:
            if mode:
                raise
            problem = error
        log.warning(
            "wandb keeps its figures in %s (%s). To send them, run `wandb login` and `wandb sync "
            "--sync-all` there.",
            self._folder / "wandb",
            mask(str(problem)),
        )
        return self._start_wandb(name, "offline")

    def _start_wandb(self, name: str, mode: str) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._run,
            name=name,
            dir=str(self._folder),
            resume="allow",
            mode=mode,
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, finish_timeout=PATIENCE
            ),
        )
        tracker.start()
        return tracker


def _read(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) and "run" in known else {}


def send(name: TrackerName, folder: Path, title: str, figures: Mapping[str, Any]) -> None:
    """Send figures, nested as they may be, as a run of their own. Raises UnavailableError."""
    tracker = Tracker(name, folder, title, {})
    tracker.log(flatten(figures), 0)
    tracker.close()
    if tracker.problem:
        raise UnavailableError(f"{tracker.problem}.")


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings, each under the path to it."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = value
    return numbers
