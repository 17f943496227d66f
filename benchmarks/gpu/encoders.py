"""Images a second of ImageBind-huge's image encoder in float16, on ONNX Runtime and on torch.

python -m benchmarks.gpu.encoders write FILE     exports it with random weights, on a CPU
python -m benchmarks.gpu.encoders measure FILE   needs onnxruntime-gpu
"""

from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import typer

from mmrag_batch.export.encoders import ImageEncoder
from mmrag_batch.export.graphs import write_graph
from mmrag_batch.retrieval.sessions import open_session, run_session
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig

BATCHES = (1, 16, 64)
ROUNDS = 10
app = typer.Typer(add_completion=False)


def encoder() -> ImageEncoder:
    """The published model's sizes with random weights."""
    torch.manual_seed(0)
    return ImageEncoder(ImageBind(ImageBindConfig())).eval()


@app.command()
def write(file: Path) -> None:
    """Export in float16."""
    started = perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    inputs: dict[str, dict[int, object]] = {"pixels": {0: "batch"}}
    sample = (torch.randn(2, 3, 224, 224),)
    attentions = write_graph(encoder(), file, inputs, "embeddings", sample, "fp16")
    seconds = perf_counter() - started
    typer.echo(f"ENCODER exported in {seconds:.0f} s, {attentions} attentions are one operator")


@app.command()
def measure(file: Path) -> None:
    """Time both, and compare them with float32."""
    module = encoder().cuda()
    halved = encoder().cuda().half()
    started = perf_counter()
    session = open_session(file, device="cuda")
    typer.echo(f"ENCODER session opened in {perf_counter() - started:.1f} s")
    for batch in BATCHES:
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, 224, 224), np.float32)
        tensor = torch.from_numpy(pixels).cuda()

        def ours(pixels: np.ndarray = pixels) -> np.ndarray:
            return run_session(session, {"pixels": pixels})

        @torch.inference_mode()
        def theirs(tensor: torch.Tensor = tensor) -> np.ndarray:
            found: np.ndarray = halved(tensor.half()).float().cpu().numpy()
            return found

        with torch.inference_mode():
            exact = module(tensor).cpu().numpy()
        shown = []
        for run in (ours, theirs):
            found = run()
            cosine = float((found * exact).sum(axis=1).min() / np.linalg.norm(found, axis=1).max())
            seconds = []
            for _ in range(ROUNDS):
                started = perf_counter()
                run()
                seconds.append(perf_counter() - started)
            shown.append(f"{batch / median(seconds):.0f} images/s (cosine {cosine:.4f})")
        typer.echo(f"ENCODER batch {batch}: ONNX Runtime {shown[0]}, torch {shown[1]}")


if __name__ == "__main__":
    app()
