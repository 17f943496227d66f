"""How ratios are taken: both sides in one process tree, in turn, the first repetition left out.

    python -m benchmarks.ratios MODULE [--repetitions 8] [--keys 1a,1b]

A benchmark that has a part in the table of docs/performance.md offers a function `ratios`; this
prints what it gives, in JSON, a line each. `python -m benchmarks` runs them all.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import typer

REPETITIONS = 8
"""Of each side; the first is left out."""
T = TypeVar("T")


class Ratio(NamedTuple):
    """One line of the table: its key, and the ratio in each repetition that counts."""

    key: str
    values: Sequence[float]
    note: str = ""


class Benchmark(Protocol):
    """What a module that has ratios offers."""

    def ratios(self, keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
        """The ratios that `keys` name; others may come along."""
        ...


def interleave(
    sides: Mapping[str, Callable[[int], T]],
    repetitions: int = REPETITIONS,
    *,
    agree: Callable[[T, T], bool] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side in each repetition but the first.

    A side is given the number of the repetition; who begins changes from one to the next. Raises
    ValueError where two sides of a repetition do not `agree`: no time is worth quoting then.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        results: dict[str, T] = {}
        for name in sorted(sides, key=list(sides).index, reverse=bool(repetition % 2)):
            started = clock()
            results[name] = sides[name](repetition)
            seconds[name].append(clock() - started)
        first, *others = sides
        for name in others:
            if agree is not None and not agree(results[first], results[name]):
                raise ValueError(f"{first} and {name} differ: no time is worth quoting.")
    return {name: values[1:] for name, values in seconds.items()}


def per(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """How often ours goes into theirs, repetition by repetition: outside load met both."""
    return [them / us for them, us in zip(theirs, ours, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The least and the most."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def shown(values: Sequence[float], digits: int = 2) -> str:
    """The median with the spread behind it."""
    return f"{median(values):.{digits}f} ({spread(values, digits)})"


class Usage(NamedTuple):
    """What a command printed, and took: seconds, those of a processor, peak memory in MiB."""

    output: str
    seconds: float
    cpu: float
    peak: float


LAUNCH = """
import json, resource, subprocess, sys, time
started = time.monotonic()
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
seconds = time.monotonic() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps([done.stdout, seconds, cpu, used.ru_maxrss / 1024]))  # KiB on Linux
sys.exit(done.returncode)
"""
"""Runs a command from a small process: the kernel counts what a process was before it became the
command, too, and a benchmark is large."""


def run_python(*arguments: object, env: Mapping[str, str] | None = None) -> Usage:
    """Run a Python command to its end. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-c", LAUNCH, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)  # noqa: S603
    return Usage(*json.loads(done.stdout))


def main(
    module: Annotated[str, typer.Argument(help="Such as start, of benchmarks/.")],
    repetitions: Annotated[int, typer.Option(min=2, help="The first is left out.")] = REPETITIONS,
    keys: Annotated[str, typer.Option(help="Of the lines that are asked for.")] = "",
) -> None:
    """Print the ratios of one benchmark."""
    benchmark: Any = import_module(f"benchmarks.{module}")
    chosen = [key for key in keys.split(",") if key]
    for ratio in benchmark.ratios(chosen, repetitions):
        typer.echo(json.dumps(ratio._asdict()))


if __name__ == "__main__":
    typer.run(main)
