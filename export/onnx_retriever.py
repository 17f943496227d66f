"""The retriever's four networks as ONNX graphs, each compared with torch as it is written."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from mmrag_batch.bundle import (
    Precision,
    RetrieverSpec,
    read_retriever_spec,
    write_retriever_spec,
)
from mmrag_batch.errors import InternalError
from mmrag_batch.export.dry_run import GIB, SECONDS, TRACING
from mmrag_batch.export.encoders import TOKENIZER, open_encoders
from mmrag_batch.export.graphs import Sample, write_graph
from mmrag_batch.export.parity import PARITY, check_parity
from mmrag_batch.export.sample import compare, read_sample
from mmrag_batch.parts import check_encoders
from mmrag_batch.progress import Progress
from mmrag_batch.train.towers import load_towers, untrained_towers


def export_encoders(
    encoders: Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    sample: Path | None = None,
    vocabulary: Path | None = None,
) -> dict[str, float]:
    """Write both encoders' graphs, their tokenizer, `retriever.json` and `parity.json` to `out`.

    `encoders` is anything that `open_encoders` takes with `vocabulary`, `sample` what `read_sample`
    takes. Returns figures for the manifest: of each graph its largest difference from torch and how
    many of its attentions are one operator; the cosines and the top-5 agreement on the sample.
    Towers that lie in `out` are removed, as they are those of its former encoders. Raises
    MissingError for encoders that are not there, InternalError where a graph differs from torch by
    more than its precision allows.
    """
    contents = read_sample(sample)
    torch_encoders = open_encoders(encoders, vocabulary)
    weights = torch_encoders.hash_weights()
    spec = replace(torch_encoders.spec, precision=precision, weights=weights)
    out.mkdir(parents=True, exist_ok=True)
    for tower in out.glob("*_tower.onnx"):
        tower.unlink()
    torch_encoders.tokenizer.save(str(out / TOKENIZER))
    batches: dict[int, object] = {0: "batch"}
    dimensions = dict(batches)
    if not spec.pad_texts:
        dimensions[1] = "length"
    texts = list(_texts(spec, torch_encoders.tokenizer.get_vocab_size()))
    figures: dict[str, float] = {}
    size = sum(4 * one.numel() for one in torch_encoders.image.parameters())
    half = SECONDS["encoders"] * size / GIB / 2  # of which each graph takes about a half
    for name, module, inputs, samples in (
        ("image_encoder", torch_encoders.image, {"pixels": batches}, list(_images(spec))),
        ("text_encoder", torch_encoders.text, {"tokens": dimensions}, texts),
    ):
        file = out / f"{name}.onnx"
        with Progress(f"Writing {file.name}", expected=TRACING + half / 2):
            attentions = write_graph(module, file, inputs, "embeddings", samples[0], precision)
        if not attentions:
            raise InternalError(f"{file.name}: no attention is one operator; please report it.")
        with Progress(f"Comparing {file.name} with torch", expected=half / 4):
            figures[name] = check_parity(module, file, samples, precision)
        figures[f"{name}_attentions"] = attentions
    with Progress("Comparing embeddings with torch", expected=half / 2):
        figures |= compare(torch_encoders, out, spec, contents)
    write_retriever_spec(out, spec)
    (out / PARITY).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def export_towers(towers_dir: Path | None, out: Path) -> dict[str, float]:
    """Write both towers' graphs to `out`, beside the encoders, and their temperature to the spec;
    None: of untrained towers, which are the encoders alone.

    Returns the largest difference from torch of each. Raises MissingError for towers or exported
    encoders that are not there, ConfigError for towers that were trained on other encoders,
    InternalError where a graph differs from torch by more than the tolerance.
    """
    spec = read_retriever_spec(out)
    if towers_dir is None:
        towers = untrained_towers(spec.embedding_size)
    else:
        towers = load_towers(towers_dir)
        check_encoders(towers_dir, out, spec)
    samples = list(_sides(towers.config.embedding_size))
    inputs = {"embeddings": {0: "batch"}, "present": {0: Dim.DYNAMIC}}
    parity = {}
    for side, tower in (("question", towers.question), ("document", towers.document)):
        file = out / f"{side}_tower.onnx"
        write_graph(tower, file, inputs, "vectors", samples[0])
        parity[f"{side}_tower"] = check_parity(tower, file, samples)
    write_retriever_spec(out, replace(spec, temperature=towers.temperature.item()))
    return parity


def _images(spec: RetrieverSpec) -> Iterator[Sample]:
    """Batches of noise. The first one shapes the graph: sizes of 1 would be taken as constant."""
    generator = torch.Generator().manual_seed(0)
    for batch in (2, 1, 5):
        yield (torch.randn(batch, 3, spec.image_size, spec.image_size, generator=generator),)


def _texts(spec: RetrieverSpec, vocabulary: int) -> Iterator[Sample]:
    """Batches of random ids up to a random end, zero-padded; also of the shortest and the full
    length, which is the only one where texts are padded to it."""
    generator = torch.Generator().manual_seed(0)
    end, context_length = vocabulary - 1, spec.context_length
    for batch, length in ((2, 5), (1, 2), (3, context_length), (5, 7)):
        length = context_length if spec.pad_texts else length
        tokens = torch.randint(1, end, (batch, length), generator=generator)
        ends = torch.randint(1, length, (batch, 1), generator=generator)
        tokens.scatter_(1, ends, end)
        yield (tokens.masked_fill(torch.arange(length) > ends, 0),)


def _sides(embedding_size: int) -> Iterator[Sample]:
    """Batches of unit vectors, each side with an image, a text or both."""
    generator = torch.Generator().manual_seed(0)
    presence = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    for batch in (3, 1, 7):
        embeddings = torch.randn(batch, 2, embedding_size, generator=generator)
        present = presence[torch.arange(batch) % 3]
        yield nn.functional.normalize(embeddings, dim=-1) * present[..., None], present
