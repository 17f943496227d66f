"""ImageBind at its full size, with random weights: exactness, speed, time and memory of each step.

    python -m benchmarks.encoders measure [--folder DIR]

Builds the published model from its own code (requirements/parity.txt), saves its weights, compares
our encoders with it, exports them in 32 and 8 bits, each by its own command, and times torch beside
ONNX Runtime: interleaved, on the same two threads, the first of 8 rounds discarded. Needs 24 GiB of
memory and, in DIR, 15 GB of disk. Prints two tables in Markdown.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Annotated

import numpy as np
import torch
import typer
from torch.nn import functional as F

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.export.encoders import open_encoders
from mmrag_batch.export.imagebind import find_vocabulary
from mmrag_batch.export.sample import read_sample
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.sessions import open_session, run_session
from tests.export.conftest import import_published

THREADS = 2
ROUNDS = 8
PRECISIONS = ("fp32", "int8")
PICTURES, TEXTS = 4, 16
app = typer.Typer(add_completion=False)


@app.command()
def build(weights: Path) -> None:
    """Save a published model with random weights; print how far our encoders are from it."""
    torch.manual_seed(0)
    theirs = import_published().imagebind_huge().eval()
    torch.save(theirs.state_dict(), weights)
    ours = open_encoders(weights, find_vocabulary(weights))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 224, 224, generator=generator)
    tokens = torch.randint(1, 49_406, (3, 77), generator=generator)
    tokens[:, 40] = 49_407
    with torch.inference_mode():
        image = (theirs({"vision": pixels})["vision"] - ours.image(pixels)).abs().max()
        published = F.normalize(theirs({"text": tokens})["text"], dim=-1)
        text = (published - ours.text(tokens)).abs().max()
    typer.echo(f"image {image:.1e}, text {text:.1e}")


@app.command()
def speed(weights: Path, graphs: Path) -> None:
    """Print medians of seconds, for pictures and texts, by torch and by ONNX Runtime."""
    torch.set_num_threads(THREADS)
    encoders = open_encoders(weights, find_vocabulary(weights))
    for parameter in encoders.image.parameters():  # one model holds both encoders
        parameter.data = parameter.data.clone()  # into memory: it is mapped from the file
    spec = read_retriever_spec(graphs / "fp32")
    prepared = Encoder(graphs / "int8", spec, device="cpu")
    contents = read_sample(None)
    pixels = np.stack([prepared.pixels(picture) for picture in contents.pictures[:PICTURES]])
    tokens = prepared.tokens(contents.texts[:TEXTS])
    del prepared
    for name, module, inputs in (
        ("image", encoders.image, {"pixels": pixels}),
        ("text", encoders.text, {"tokens": tokens}),
    ):
        (array,) = inputs.values()
        runs: dict[str, Callable[[], object]] = {"torch": partial(module, torch.from_numpy(array))}
        for precision in PRECISIONS:
            file = graphs / precision / f"{name}_encoder.onnx"
            session = open_session(file, device="cpu", threads=THREADS)
            runs[precision] = partial(run_session, session, inputs)
        typer.echo(row(name, len(array), rounds(runs)))


@torch.inference_mode()
def rounds(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each run in each round but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = monotonic()
            run()
            seconds[name].append(monotonic() - started)
    return {name: values[1:] for name, values in seconds.items()}


def row(name: str, items: int, seconds: Mapping[str, list[float]]) -> str:
    """One line: seconds an item with their spread, and how often faster than torch."""
    cells = []
    for values in seconds.values():
        spread = f"{min(values) / items:.3f} to {max(values) / items:.3f}"
        faster = median(seconds["torch"]) / median(values)
        cells.append(f"{median(values) / items:.3f} ({spread}) | {faster:.2f}x")
    return f"| {name} | {' | '.join(cells)} |"


def step(*arguments: str) -> tuple[str, float, float]:
    """What a command prints, its seconds, and its peak memory in GiB."""
    started = monotonic()
    with tempfile.TemporaryFile("w+") as stream:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=stream)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stream.seek(0)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments)
        return stream.read().strip(), monotonic() - started, usage.ru_maxrss / 2**20  # KiB


@app.command("measure")
def main(
    folder: Annotated[Path | None, typer.Option(help="Where the models go; kept.")] = None,
) -> None:
    """Take every step and print both tables."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        weights, this = place / "imagebind_huge.pth", "benchmarks.encoders"
        steps = {"weights, beside the published code": step(this, "build", str(weights))}
        export = ("mmrag_batch", "export", "encoders", "--imagebind", str(weights), "--out")
        for precision in PRECISIONS:
            out = str(place / precision)
            steps[f"export {precision}"] = step(*export, out, "--precision", precision)
        timed, *_ = step(this, "speed", str(weights), str(place))
    typer.echo("| step | seconds | peak GiB | result |\n|---|---|---|---|")
    for name, (result, seconds, peak) in steps.items():
        typer.echo(f"| {name} | {seconds:.0f} | {peak:.1f} | {', '.join(result.splitlines())} |")
    typer.echo(
        "\n| s an item | torch fp32 | | ORT fp32 | | ORT int8 | |\n|---|---|---|---|---|---|---|"
    )
    typer.echo(timed)


if __name__ == "__main__":
    app()
