"""ImageBind's encoders with random weights: exactness, speed, time and memory of each step.

    python -m benchmarks.encoders measure [--folder DIR]

Builds the published model at its full size from its own code (requirements/parity.txt), saves its
weights, compares our encoders with it, exports them in 32 and 8 bits, each by its own command, and
times torch beside ONNX Runtime, on the same threads. Needs 24 GiB of memory and, in DIR, 15 GB of
disk. Prints two tables in Markdown. The table of docs/performance.md has the ratios of encoders of
the same width with two of their layers, which are exported once and kept in build/.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.ratios import Ratio, interleave, per, run_python, shown
from mmrag_batch.bundle import Precision, read_retriever_spec
from mmrag_batch.export.encoders import open_encoders
from mmrag_batch.export.imagebind import find_vocabulary
from mmrag_batch.export.onnx_retriever import export_encoders, export_towers
from mmrag_batch.export.parity import top_k_agreement
from mmrag_batch.export.sample import K, read_sample
from mmrag_batch.machine import INT8, cores, cpu_flags
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.sessions import open_session, run_session
from mmrag_batch.train.demo_pairs import sentences
from mmrag_batch.train.encoders import save, train_tokenizer
from mmrag_batch.train.imagebind import ImageBind, ImageBindConfig
from tests.export.conftest import import_published

ROOT = Path(__file__).parent.parent
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
PICTURES, TEXTS = 4, 16
LAYERS = 2
"""Of the encoders of the table."""
MANY = 128
"""Texts that are trimmed."""
app = typer.Typer(add_completion=False)
Vectors = NDArray[np.float32]


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


def wide() -> Path:
    """A folder with encoders of ImageBind's width and `LAYERS` layers, as `model`, and with their
    graphs, as `fp32` and `int8`; written once for a version of what exports them."""
    sources = [*sorted((ROOT / "export").glob("*.py")), ROOT / "train" / "imagebind.py"]
    written_by = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    folder = ROOT / "build" / "benchmarks" / f"encoders-{LAYERS}-{written_by}"
    if not folder.is_dir():
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir(parents=True)
        torch.manual_seed(0)
        tokenizer = train_tokenizer(sentences(Random(0), 500), ImageBindConfig().context_length)
        vocabulary = tokenizer.get_vocab_size()
        config = ImageBindConfig(
            image_blocks=LAYERS, text_blocks=LAYERS, vocabulary=vocabulary, name="2 layers"
        )
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            part = Path(name) / "part"
            save(ImageBind(config), tokenizer, part / "model")
            for precision in PRECISIONS:
                export_encoders(part / "model", part / precision, precision=precision)
                export_towers(None, part / precision)
            part.rename(folder)
    return folder


@torch.inference_mode()
def times(model: Path, graphs: Path, repetitions: int = 8) -> dict[str, dict[str, list[float]]]:
    """Seconds an item, by `image` and `text`, then by torch and precision."""
    torch.set_num_threads(cores())
    encoders = open_encoders(model, None if model.is_dir() else find_vocabulary(model))
    for parameter in encoders.image.parameters():  # one model holds both encoders
        parameter.data = parameter.data.clone()  # into memory: it is mapped from the file
    prepared = Encoder(graphs / "int8", read_retriever_spec(graphs / "int8"), device="cpu")
    contents = read_sample(None)
    pixels = np.stack([prepared.pixels(picture) for picture in contents.pictures[:PICTURES]])
    tokens = prepared.tokens(contents.texts[:TEXTS])
    del prepared
    return {
        "image": _times(encoders.image, graphs, "image", "pixels", pixels, repetitions),
        "text": _times(encoders.text, graphs, "text", "tokens", tokens, repetitions),
    }


def _times(
    module: nn.Module, graphs: Path, name: str, feed: str, items: NDArray[Any], repetitions: int
) -> dict[str, list[float]]:
    tensor = torch.from_numpy(items)
    sides: dict[str, Callable[[int], Vectors]] = {"torch": lambda _: module(tensor).numpy()}
    for precision in PRECISIONS:
        file = graphs / precision / f"{name}_encoder.onnx"
        session = open_session(file, device="cpu", threads=cores())
        sides[precision] = lambda _, session=session: run_session(session, {feed: items})  # type: ignore[misc]
    seconds = interleave(sides, repetitions, agree=_are_near)
    return {side: [value / len(items) for value in values] for side, values in seconds.items()}


def _are_near(vectors: Vectors, others: Vectors) -> bool:
    """Whether each vector is another's but for what 8 bits lose."""
    return bool(((vectors * others).sum(axis=1) > 0.99).all())


def agreement(model: Path, graphs: Path) -> float:
    """How much of each content's five nearest stays where graphs take the place of torch."""
    encoders, contents = open_encoders(model), read_sample(None)
    encoder = Encoder(graphs, read_retriever_spec(graphs), device="cpu")
    pixels = torch.stack([torch.from_numpy(encoder.pixels(one)) for one in contents.pictures])
    with torch.inference_mode():
        expected = encoders.image(pixels), encoders.text(_tensor(encoder, contents.texts))
    actual = encoder.encode_images(contents.pictures), encoder.encode_texts(contents.texts)
    return top_k_agreement(torch.cat(expected), torch.cat(list(map(torch.from_numpy, actual))), K)


def _tensor(encoder: Encoder, texts: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(encoder.tokens(texts))


def trimmed(graphs: Path, repetitions: int) -> list[float]:
    """How much faster texts of 20 tokens on average are than the same padded to 77."""
    encoder = Encoder(graphs, read_retriever_spec(graphs), device="cpu", threads=cores())
    random, words = Random(0), " ".join(sentences(Random(0), 500)).split()
    counts = [min(70, 3 + int(random.expovariate(1 / 12))) for _ in range(MANY)]
    texts = [" ".join(random.choices(words, k=count)) for count in counts]
    tokens = encoder.tokens(texts)
    mean = float((tokens.argmax(axis=1) + 1).mean())
    assert 18 < mean < 22, f"{mean} tokens on average"

    def padded(_: int) -> Vectors:
        batches = np.array_split(tokens, max(1, tokens.size // 4096))
        return np.concatenate([encoder._run(encoder._text, "tokens", one) for one in batches])

    sides: dict[str, Callable[[int], Vectors]] = {
        "ours": lambda _: encoder.encode_texts(texts),
        "padded": padded,
    }
    seconds = interleave(sides, repetitions, agree=partial(np.allclose, atol=1e-5))
    return per(seconds["padded"], seconds["ours"])


def ratios(keys: Collection[str], repetitions: int) -> Iterator[Ratio]:
    """Against torch, in 32 and 8 bits, and texts against padded ones."""
    folder = wide()
    model = folder / "model"
    if set(keys) - {"2c", "3"}:
        found = times(model, folder, repetitions)
        note = "" if cpu_flags() & INT8 else "no VNNI here"
        for letter, kind in (("a", "image"), ("b", "text")):
            seconds = found[kind]
            yield Ratio(f"1{letter}", per(seconds["torch"], seconds["fp32"]))
            yield Ratio(f"2{letter}", per(seconds["torch"], seconds["int8"]), note)
    if "2c" in keys:
        yield Ratio("2c", [100 * agreement(model, folder / "int8")])
    if "3" in keys:
        yield Ratio("3", trimmed(folder / "fp32", repetitions))


@app.command()
def speed(weights: Path, graphs: Path) -> None:
    """Print medians of seconds, for pictures and texts, by torch and by ONNX Runtime."""
    for name, seconds in times(weights, graphs).items():
        cells = [
            f"{shown(values, 3)} | {np.median(per(seconds['torch'], values)):.2f}x"
            for values in seconds.values()
        ]
        typer.echo(f"| {name} | {' | '.join(cells)} |")


@app.command("measure")
def main(
    folder: Annotated[Path | None, typer.Option(help="Where the models go; kept.")] = None,
) -> None:
    """Take every step and print both tables."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        weights, this = place / "imagebind_huge.pth", ("-m", "benchmarks.encoders")
        steps = {"weights, beside the published code": run_python(*this, "build", weights)}
        export = ("-m", "mmrag_batch", "export", "encoders", "--imagebind", weights, "--out")
        for precision in PRECISIONS:
            out = place / precision
            steps[f"export {precision}"] = run_python(*export, out, "--precision", precision)
        timed = run_python(*this, "speed", weights, place).output.strip()
    typer.echo("| step | seconds | peak GiB | result |\n|---|---|---|---|")
    for name, used in steps.items():
        result = ", ".join(used.output.strip().splitlines())
        typer.echo(f"| {name} | {used.seconds:.0f} | {used.peak / 1024:.1f} | {result} |")
    typer.echo(
        "\n| s an item | torch fp32 | | ORT fp32 | | ORT int8 | |\n|---|---|---|---|---|---|---|"
    )
    typer.echo(timed)


if __name__ == "__main__":
    app()
