"""How long `predict` takes to its first line and to the first answer of a table of one row, against
importing what it runs on, the class of the demo's model included. Linux.

    python -m benchmarks.start [--repeat 3]

Prints a table in Markdown: seconds of processor time, of which other work on the machine takes no
part, to each step; the least of `--repeat` runs, each in a process of its own. The table of
docs/performance.md also has `--help`, and what a long table costs between loading and first answer.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.ratios import Ratio, per, run_python

DEMO = Path(__file__).parent.parent / "examples" / "demo"
IMPORTS = "import torch, transformers, onnxruntime"
MODEL = "from transformers import MllamaForConditionalGeneration"
LOADED = {"answer": "loaded"}
LOAD, ANSWER = "generator is", ": ok"
STEPS = {"first line": " answers ", "models loaded": LOAD, "answer": " asked now"}
PYTHON, PREDICT = [sys.executable, "-c"], [sys.executable, "-m", "mmrag_batch", "predict"]
FEW, MANY = 100, 10_000
"""Rows of a table, of which the first answer is waited for."""
TICKS = os.sysconf("SC_CLK_TCK")


def runs(repetitions: int, *, but: str = "") -> Iterator[dict[str, dict[str, float]]]:
    """Processor time to each step, by what is run; all of a repetition one after the other."""
    with TemporaryDirectory() as folder:
        lines = (DEMO / "questions.csv").read_text(encoding="utf-8").splitlines()
        (Path(folder) / "in.csv").write_text("\n".join([*lines[:2], ""]), encoding="utf-8")
        (Path(folder) / "images").symlink_to(DEMO / "images")
        for number in range(repetitions):
            commands = {
                IMPORTS: ([*PYTHON, f"{IMPORTS}; print('loaded', flush=True)"], LOADED),
                MODEL: ([*PYTHON, f"{IMPORTS}; {MODEL}; print('loaded', flush=True)"], LOADED),
                "predict": ([*PREDICT, "in.csv", f"out{number}.csv"], STEPS),
            }
            commands.pop(but, None)
            yield {name: time_steps(*how, folder) for name, how in commands.items()}


def processor_time(process: int) -> float:
    """Seconds that a process has had so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def time_steps(words: Sequence[str], steps: Mapping[str, str], folder: str) -> dict[str, float]:
    """Processor time to each step, which a text in a line of the command tells, and to its end."""
    process = subprocess.Popen(  # noqa: S603  # words of our own
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    assert process.stdout is not None
    times: dict[str, float] = {}
    for line in process.stdout:
        for step, text in steps.items():
            if text in line:
                times.setdefault(step, processor_time(process.pid))
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return times | {"end": used.ru_utime + used.ru_stime}


def first_answer(table: Path) -> float:
    """Processor time from the models being loaded to the first answer, by the scripted engine."""
    words = [*PREDICT, str(table), str(table.with_suffix(".out.csv")), "--fresh", "--verbose"]
    with subprocess.Popen(  # noqa: S603  # words of our own
        [*words, "--engine", "scripted", "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        loaded = 0.0
        try:
            for line in process.stderr:
                if LOAD in line:
                    loaded = processor_time(process.pid)
                if ANSWER in line:
                    return processor_time(process.pid) - loaded
        finally:
            process.kill()
    raise RuntimeError(f"{table} got no answer.")


def write_table(table: Path, rows: int) -> Path:
    """Questions, each with documents of its own, which retrieval has to encode."""
    with table.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(["question_text", "answer_choices", "documents"])
        for row in range(rows):
            documents = json.dumps([f"note {n} of thing {row}" for n in range(8)])
            lines.writerow([f"Which thing is {row}?", '["a pump", "a crane"]', documents])
    return table


def ratios(keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """To the first answer, to the models, and to the help; the first repetition is left out."""
    if "10a" in keys:
        with TemporaryDirectory() as folder:
            few, many = (write_table(Path(folder) / f"{n}.csv", n) for n in (FEW, MANY))
            times = [(first_answer(many), first_answer(few)) for _ in range(repetitions)]
        yield Ratio("10a", [long / short for long, short in times[1:]])
    if "10b" in keys:
        found = list(runs(repetitions, but=IMPORTS))[1:]
        loaded = [one["predict"]["models loaded"] for one in found]
        yield Ratio("10b", per(loaded, [one[MODEL]["answer"] for one in found]))
    if "14" in keys:
        sides = ("-m", "mmrag_batch", "--help"), ("-c", "import typer")
        used = [[run_python(*side).cpu for side in sides] for _ in range(repetitions)]
        yield Ratio("14", [ours / theirs for ours, theirs in used[1:]])


def main(repeat: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Time them and print the table."""
    found = list(runs(repeat))
    names = [*STEPS, "end"]
    typer.echo(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for what in found[0]:
        times = [one[what] for one in found]
        least = {step: min(one[step] for one in times) for step in times[0]}
        cells = (f"{least[step]:.2f}" if step in least else "" for step in names)
        typer.echo(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
