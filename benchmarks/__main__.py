"""Every ratio that this machine can measure, as one table.

    python -m benchmarks [--only 3,9] [--quick]
    python -m benchmarks --list

Each benchmark runs in a process of its own and within a time limit of its own. Prints the table in
Markdown, and writes it into docs/performance.md; with `--only`, the other lines stay as they are.
"""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from packaging.requirements import Requirement

from benchmarks.ratios import REPETITIONS, Ratio
from benchmarks.table import (
    COMPARISONS,
    GPU,
    OTHERS,
    PROGRAMS,
    Comparison,
    Line,
    line_of,
    update_page,
    write_table,
)
from mmrag_batch.machine import INT8, cores, cpu_flags, has_cuda, installed_version

app = typer.Typer(add_completion=False)
ROOT = Path(__file__).parent.parent
QUICK = 3
SAID = 400
"""Letters of what a benchmark said when it failed."""
TICKS = os.sysconf("SC_CLK_TCK")


def chosen(only: str) -> list[Comparison]:
    """The lines of the numbers and keys in `only`, or all. Raises typer.BadParameter."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    lines = [
        line
        for line in COMPARISONS
        if not names or line.key in names or line.key.rstrip("abc") in names
    ]
    keys = {line.key for line in lines} | {line.key.rstrip("abc") for line in lines}
    if unknown := set(names) - keys:
        raise typer.BadParameter(f"no ratio is {', '.join(sorted(unknown))}; see --list.")
    return lines


def obstacle(module: str) -> str:
    """Why a benchmark cannot run here."""
    if module == GPU:
        return "`python -m benchmarks.gpu.all` measures what a GPU does" if has_cuda() else "no GPU"
    needs = PROGRAMS[module].needs
    return f"no {needs} here" if needs and find_spec(needs) is None else ""


def busy() -> float:
    """Seconds that processors were busy since the machine started, for us or others; Linux."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / TICKS


def ours() -> float:
    """Seconds of these that went to processes of ours that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(
    module: str, lines: Sequence[Comparison], repetitions: int
) -> Iterator[tuple[str, Line]]:
    """Run a benchmark; what becomes of each line."""
    if reason := obstacle(module):
        yield from ((line.key, Line(verdict=f"not run: {reason}")) for line in lines)
        return
    keys = ",".join(line.key for line in lines)
    command = [sys.executable, "-m", "benchmarks.ratios", module]
    command += ["--repetitions", str(repetitions), "--keys", keys]
    limit, path = PROGRAMS[module].limit, ROOT / PROGRAMS[module].path
    paths = {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    started, busy_before, ours_before = monotonic(), busy(), ours()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603  # our own command
            command,
            cwd=ROOT,
            env=os.environ | paths,
            stdout=said,
            stderr=log,
            start_new_session=True,
        )
        try:
            problem = f"it ended with {code}" if (code := process.wait(limit)) else ""
        except subprocess.TimeoutExpired:
            problem = f"it took more than {limit} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for stream in (said, log):
            stream.seek(0)
        ratios = [Ratio(**json.loads(text)) for text in said if text.startswith('{"key":')]
        if problem:
            typer.echo(log.read(), err=True)
            log.seek(0)
            last = ["", *log.read().strip().splitlines()][-1][:SAID].replace("|", "/")
            problem = f"failed: {problem}. {last}".strip()
    seconds = monotonic() - started
    load = max(0.0, busy() - busy_before - (ours() - ours_before)) / seconds
    found = {ratio.key: line_of(ratio, load) for ratio in ratios}
    for line in lines:
        yield line.key, found.get(line.key, Line(verdict=problem or "failed: it gave no ratio"))
    typer.echo(f"{module}: {seconds:.0f} s, {load:.1f} cores went to others", err=True)


def machine() -> str:
    """What the lines were measured on."""
    names = ("torch", "onnxruntime", "vllm")
    versions = [f"{name} {installed_version(Requirement(name)) or 'none'}" for name in names]
    versions.insert(0, f"Python {platform.python_version()}")
    flags = "VNNI" if cpu_flags() & INT8 else "no VNNI"
    return f"Measured with {cores()} cores, {flags}; {', '.join(versions)}."


def tell() -> None:
    """What there is to run."""
    for module, program in PROGRAMS.items():
        keys = ", ".join(line.key for line in COMPARISONS if line.module == module)
        reason = obstacle(module)
        typer.echo(f"{module:14} {keys} (at most {program.limit} s){reason and f': {reason}'}")
    for module, what in OTHERS.items():
        typer.echo(f"{module:14} no ratio: {what}")


@app.command()
def main(
    only: Annotated[str, typer.Option(help="Numbers or keys of ratios, with commas.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repetitions; the page stays as it is.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="What there is, and run nothing.")] = False,
) -> None:
    """Measure every ratio that this machine can."""
    if listed:
        tell()
        return
    wanted = chosen(only)
    lines: dict[str, Line] = {}
    for module in (*PROGRAMS, GPU):
        of_module = [line for line in wanted if line.module == module]
        if of_module:
            lines |= measure(module, of_module, QUICK if quick else REPETITIONS)
            if not quick:
                update_page(lines, machine())
    typer.echo(write_table(lines))
    typer.echo(machine())


if __name__ == "__main__":
    app()
