"""Every question that only a GPU answers, each within a time limit of its own.

    python -m benchmarks.gpu.all DIR OUT [--graph FILE] [--only parity,serving]

DIR is what `benchmarks.gpu.world` wrote, FILE what `benchmarks.gpu.encoders write` did. Figures are
printed as they come; OUT gets `figures.txt` and, step by step, all that was said in `log.txt`.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

FIGURES = ("PARITY", "VISION", "DEMO", "SERVING", "TRAINING", "ENCODER", '{"family"')
SAID_OF_A_FAILURE = 12


@dataclass(frozen=True)
class Step:
    """One script, and the seconds it may take."""

    name: str
    limit: int
    arguments: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


def parity(*options: str, **environment: str) -> Step:
    # Several run beside each other: few threads, and one process each.
    few = {"OMP_NUM_THREADS": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return Step("parity", 160, ("benchmarks.gpu.parity", *options), few | environment)


def steps(directory: Path, graph: Path | None) -> list[list[Step]]:
    """Groups of steps, in order; those of a group run beside each other, as nothing is timed."""
    world = str(directory)
    groups = [
        [
            parity(),
            parity("--eager", "--blocks", "200", "--repeat", "8"),
            parity("--dtype", "bfloat16"),
            parity(VLLM_USE_V2_MODEL_RUNNER="0"),
        ],
        [Step("vision", 60, ("benchmarks.gpu.vision",))],
        [Step("serving", 200, ("benchmarks.gpu.serving", world))],
        [Step("training", 100, ("benchmarks.gpu.training", world))],
        [
            Step(
                "transformers",
                110,
                ("benchmarks.gpu.serving", world, "--engine", "transformers", "--rows", "32"),
            )
        ],
        [
            Step(
                "qlora",
                150,
                ("benchmarks.gpu.training", world, "--preset", "llama_11b_24gb", "--steps", "3"),
            )
        ],
        [Step("demo", 130, ("benchmarks.gpu.demo",))],
        [Step("families", 200, ("benchmarks.gpu.families",))],
    ]
    if graph is not None:
        encoders = Step("encoders", 60, ("benchmarks.gpu.encoders", "measure", str(graph)))
        groups.insert(3, [encoders])
    return groups


class Report:
    """Both files, and the figures on the screen."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._figures, self._log = out / "figures.txt", out / "log.txt"
        self._lock, self._started = threading.Lock(), monotonic()

    def run(self, step: Step) -> None:
        """Run a step and file what it says as it says it, whatever becomes of it."""
        started = monotonic()
        name = " ".join([*step.arguments[1:], *(f"{k}={v}" for k, v in step.environment.items())])
        last: deque[str] = deque(maxlen=SAID_OF_A_FAILURE)
        with subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *step.arguments],
            env={**os.environ, **step.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            alarm = threading.Timer(step.limit, os.killpg, (process.pid, signal.SIGKILL))
            alarm.start()
            assert process.stdout is not None  # it is a pipe
            for line in map(str.rstrip, process.stdout):
                self._file(f"{step.name} {name}: {line}", self._log)
                last.append(f"  | {line[:300]}")
                if line.startswith(FIGURES):
                    self._file(line, self._figures)
            code = process.wait()
            alarm.cancel()
        if code:
            self._file("\n".join(last), self._figures)
        at, seconds = monotonic() - self._started, monotonic() - started
        end = f"exit {code} after {seconds:.0f} of {step.limit} s, at {at:.0f} s"
        self._file(f"-- {step.name} {name}: {end}", self._figures)

    def _file(self, text: str, file: Path) -> None:
        with self._lock, file.open("a") as stream:
            stream.write(text + "\n")
            if file == self._figures:
                typer.echo(text)


def main(
    directory: Path,
    out: Path,
    graph: Annotated[Path | None, typer.Option(help="ImageBind's image encoder.")] = None,
    only: Annotated[str, typer.Option(help="Names of steps, with commas.")] = "",
) -> None:
    """Run the steps."""
    report = Report(out)
    for group in steps(directory, graph):
        chosen = [step for step in group if not only or step.name in only.split(",")]
        threads = [threading.Thread(target=report.run, args=(step,)) for step in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    typer.run(main)
