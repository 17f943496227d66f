"""The retriever's four networks as ONNX graphs, each compared with torch as it is written.

A graph is one file, but for weights past the 2 GB that a protobuf can hold, which go beside it.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from export.parity import check_parity
from mmrag_batch.bundle import RetrieverSpec, read_retriever_spec, write_retriever_spec
from mmrag_batch.errors import MissingError
from train.imagebind import ImageBind, ImageBindConfig, load_encoders
from train.towers import load_towers

OPSET = 20
PROTOBUF_LIMIT = 2_000_000_000
TOKENIZER = "tokenizer.json"

# It warns that torchvision's operators cannot be exported where it is not installed; none is used.
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

Sample = tuple[Tensor, ...]


class ImageEncoder(nn.Module):
    """`ImageBind.encode_image` as a module."""

    def __init__(self, model: ImageBind) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        return self.model.encode_image(pixels)


class TextEncoder(nn.Module):
    """`ImageBind.encode_text` as a module."""

    def __init__(self, model: ImageBind) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, D)."""
        return self.model.encode_text(tokens)


def export_encoders(encoders_dir: Path, out: Path) -> dict[str, float]:
    """Write both encoders' graphs, their tokenizer and `retriever.json` to `out`.

    Returns the largest difference from torch of each. Raises MissingError for encoders that are not
    there, InternalError where a graph differs from torch by more than the tolerance.
    """
    model = load_encoders(encoders_dir)
    tokenizer = encoders_dir / TOKENIZER
    if not tokenizer.is_file():
        raise MissingError(f"{tokenizer} is missing; train the encoders again.")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, out / TOKENIZER)
    parity = {
        "image_encoder": _export(
            ImageEncoder(model),
            out / "image_encoder.onnx",
            {"pixels": {0: "batch"}},
            "embeddings",
            list(_images(model.config)),
        ),
        "text_encoder": _export(
            TextEncoder(model),
            out / "text_encoder.onnx",
            {"tokens": {0: "batch", 1: "length"}},
            "embeddings",
            list(_texts(model.config)),
        ),
    }
    write_retriever_spec(out, _spec(model.config))
    return parity


def export_towers(towers_dir: Path, out: Path) -> dict[str, float]:
    """Write both towers' graphs to `out`, beside the encoders, and their temperature to the spec.

    Returns the largest difference from torch of each. Raises MissingError for towers or exported
    encoders that are not there, InternalError where a graph differs from torch by more than the
    tolerance.
    """
    towers = load_towers(towers_dir)
    spec = read_retriever_spec(out)
    samples = list(_sides(towers.config.embedding_size))
    inputs = {"embeddings": {0: "batch"}, "present": {0: Dim.DYNAMIC}}
    parity = {
        f"{side}_tower": _export(tower, out / f"{side}_tower.onnx", inputs, "vectors", samples)
        for side, tower in (("question", towers.question), ("document", towers.document))
    }
    write_retriever_spec(out, replace(spec, temperature=towers.temperature.item()))
    return parity


def _export(
    module: nn.Module,
    file: Path,
    inputs: Mapping[str, dict[int, object]],
    output: str,
    samples: Sequence[Sample],
) -> float:
    """Write one graph and compare it. `inputs` names each input and its dynamic dimensions."""
    with warnings.catch_warnings():
        # torch's exporter still calls what torch deprecates.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`", FutureWarning)
        program = torch.onnx.export(
            module.eval(),
            samples[0],
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(inputs.values()),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is, of the dynamo exporter
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    weights = [item.const_value for item in program.model.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    program.save(file, external_data=size > PROTOBUF_LIMIT)
    return check_parity(module, file, samples)


def _spec(config: ImageBindConfig) -> RetrieverSpec:
    return RetrieverSpec(
        encoder=config.name,
        licence=config.licence,
        embedding_size=config.embedding_size,
        image_size=config.image_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        context_length=config.context_length,
    )


def _images(config: ImageBindConfig) -> Iterator[Sample]:
    """Batches of noise. The first one shapes the graph: sizes of 1 would be taken as constant."""
    generator = torch.Generator().manual_seed(0)
    for batch in (2, 1, 5):
        yield (torch.randn(batch, 3, config.image_size, config.image_size, generator=generator),)


def _texts(config: ImageBindConfig) -> Iterator[Sample]:
    """Batches of random ids up to a random end, zero-padded; also of the shortest and the full
    length."""
    generator = torch.Generator().manual_seed(0)
    end = config.vocabulary - 1
    for batch, length in ((2, 5), (1, 2), (3, config.context_length), (5, 7)):
        tokens = torch.randint(1, end, (batch, length), generator=generator)
        ends = torch.randint(1, length, (batch, 1), generator=generator)
        tokens.scatter_(1, ends, end)
        yield (tokens.masked_fill(torch.arange(length) > ends, 0),)


def _sides(embedding_size: int) -> Iterator[Sample]:
    """Batches of unit vectors, each side with an image, a text or both."""
    generator = torch.Generator().manual_seed(0)
    either = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    for batch in (3, 1, 7):
        embeddings = torch.randn(batch, 2, embedding_size, generator=generator)
        present = either[torch.arange(batch) % 3]
        yield nn.functional.normalize(embeddings, dim=-1) * present[..., None], present
