"""How long `predict` takes to its first line and to the first answer of a table of one row, against
importing what it runs on, the class of the demo's model included. Linux.

    python -m benchmarks.start [--repeat 3]

Prints a table in Markdown: seconds of processor time, of which other work on the machine takes no
part, to each step; the least of `--repeat` runs, each in a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

DEMO = Path(__file__).parent.parent / "examples" / "demo"
IMPORTS = "import torch, transformers, onnxruntime"
MODEL = "from transformers import MllamaForConditionalGeneration"
TICKS = os.sysconf("SC_CLK_TCK")


def main(repeat: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Time them and print the table."""
    with TemporaryDirectory() as folder:
        lines = (DEMO / "questions.csv").read_text(encoding="utf-8").splitlines()
        (Path(folder) / "in.csv").write_text("\n".join([*lines[:2], ""]), encoding="utf-8")
        (Path(folder) / "images").symlink_to(DEMO / "images")
        steps = {"first line": " answers ", "models loaded": "generator is", "answer": " asked now"}
        python, ended = [sys.executable, "-c"], {"answer": "loaded"}
        runs: dict[str, tuple[list[str], Mapping[str, str]]] = {
            IMPORTS: ([*python, f"{IMPORTS}; print('loaded', flush=True)"], ended),
            MODEL: ([*python, f"{IMPORTS}; {MODEL}; print('loaded', flush=True)"], ended),
            "predict": ([sys.executable, "-m", "mmrag_batch", "predict", "in.csv"], steps),
        }
        names = [*steps, "end"]
        typer.echo(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for name, (words, looked_for) in runs.items():
            times: list[dict[str, float]] = []
            for number in range(repeat):
                more = [f"out{number}.csv"] if name == "predict" else []
                times.append(time_steps([*words, *more], looked_for, folder))
            least = {step: min(one[step] for one in times) for step in times[0]}
            cells = (f"{least[step]:.2f}" if step in least else "" for step in names)
            typer.echo(f"| {name} | {' | '.join(cells)} |")


def time_steps(words: Sequence[str], steps: Mapping[str, str], folder: str) -> dict[str, float]:
    """Processor time to each step, which a text in a line of the command tells, and to its end."""
    process = subprocess.Popen(  # noqa: S603  # words of our own
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    assert process.stdout is not None
    times: dict[str, float] = {}
    for line in process.stdout:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        for step, text in steps.items():
            if text in line:
                times.setdefault(step, (int(fields[11]) + int(fields[12])) / TICKS)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return times | {"end": used.ru_utime + used.ru_stime}


if __name__ == "__main__":
    typer.run(main)
