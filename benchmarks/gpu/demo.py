"""The demo on a GPU beside the demo on the CPU: predictions that differ, and probabilities.

python -m benchmarks.gpu.demo
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import typer

QUESTIONS = Path(__file__).parents[2] / "examples" / "demo" / "questions.csv"
RUNS = (
    ("transformers", "float32", "cpu"),
    ("transformers", "float32", "cuda"),
    ("vllm", "bfloat16", "cuda"),
)


def predict(out: Path, engine: str, dtype: str, device: str) -> list[dict[str, str]]:
    """The rows that a run writes."""
    options = ["--engine", engine, "--dtype", dtype, "--device", device]
    command = [sys.executable, "-m", "mmrag_batch", "predict", str(QUESTIONS), str(out), *options]
    subprocess.run(command, check=True)  # noqa: S603
    with out.open(newline="") as stream:
        return list(csv.DictReader(stream))


def main() -> None:
    """Run all, each beside the first."""
    with tempfile.TemporaryDirectory() as folder:
        expected: list[dict[str, str]] = []
        for number, run in enumerate(RUNS):
            started = perf_counter()
            try:
                rows = predict(Path(folder) / f"{number}.csv", *run)
            except subprocess.CalledProcessError as error:
                typer.echo(f"DEMO {' '.join(run)}: exit {error.returncode}")
                continue
            expected = expected or rows
            pairs = list(zip(rows, expected, strict=True))
            same = sum(ours["prediction"] == theirs["prediction"] for ours, theirs in pairs)
            apart = max(
                abs(float(ours["confidence"] or 0) - float(theirs["confidence"] or 0))
                for ours, theirs in pairs
            )
            typer.echo(
                f"DEMO {' '.join(run)}: {same}/{len(rows)} predictions as on the CPU, "
                f"probabilities at most {apart:.1e} apart, {perf_counter() - started:.0f} s"
            )


if __name__ == "__main__":
    typer.run(main)
