"""Peak memory of a merge, beside its bound: the largest shard + 2 GiB.

    python -m benchmarks.merge [--gigabytes 3] [--shards 6] [--folder DIR]

Writes a random Llama 3.2 Vision of that size in bfloat16, with the names of the published one, and
a random adapter for it; merges them by `mmrag-batch export generator` in a process of its own, and
reads that process's peak memory from the kernel. Prints one table in Markdown.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import MllamaForConditionalGeneration

from benchmarks.ratios import run_python
from mmrag_batch.export.checkpoint import INDEX
from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.train.mllama import GeneratorSizes, build_generator, model_config
from mmrag_batch.train.tuning import decoder_layers

GIB = 2**30


def sizes_of(gigabytes: float) -> GeneratorSizes:
    """Those of a Mllama of about that size in bfloat16."""
    width = 2048 if gigabytes >= 0.5 else 512
    layer = 2 * (2 * width * width + width * width // 2 + 12 * width * width)  # bytes
    return GeneratorSizes(
        hidden_size=width,
        layers=max(5, round(gigabytes * 1e9 / layer / 5) * 5),
        heads=width // 64,
        kv_heads=width // 256,
        intermediate_size=4 * width,
    )


def published(name: str) -> str:
    """The name in a published checkpoint of a weight of transformers' module."""
    for theirs in (
        name.replace("model.language_model.", "language_model.model.", 1),
        "language_model." + name,
        name.removeprefix("model."),
    ):
        if theirs != name and Mllama.module_name(theirs) == name:
            return theirs
    return name


def write_base(directory: Path, gigabytes: float, shards: int) -> MllamaForConditionalGeneration:
    """Random weights, a shard at a time; returns the model on the meta device."""
    build_generator(directory, ["a text"])  # a small one, for its tokenizer
    (directory / "model.safetensors").unlink()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(model_config(tokenizer, sizes_of(gigabytes)))
    model.config.dtype = torch.bfloat16
    model.config.architectures = ["MllamaForConditionalGeneration"]
    model.config.save_pretrained(directory)
    weights = model.state_dict()
    size = sum(weight.numel() for weight in weights.values()) / shards
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_portions(weights, size), start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        shard = {published(n): torch.randn(weights[n].shape).bfloat16() * 0.02 for n in names}
        save_file(shard, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return model


def _portions(weights: dict[str, torch.Tensor], size: float) -> Iterator[list[str]]:
    """Names of weights, in order, cut where a multiple of `size` numbers is full."""
    names: list[str] = []
    total, full = 0, size
    for name, weight in weights.items():
        names.append(name)
        total += weight.numel()
        if total >= full - 1:
            yield names
            names, full = [], full + size
    if names:
        yield names


def write_adapter(directory: Path, model: MllamaForConditionalGeneration) -> None:
    """Noise on every projection of the text model."""
    targets = decoder_layers(model)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets)
    adapted = get_peft_model(model, lora)
    halves = {
        name.replace(".default", ""): torch.randn(parameter.shape) * 0.02
        for name, parameter in adapted.named_parameters()
        if "lora_" in name
    }
    directory.mkdir()
    save_file(halves, directory / "adapter_model.safetensors")
    lora.target_modules = targets
    lora.save_pretrained(str(directory))


def main(
    gigabytes: Annotated[float, typer.Option(help="Of the checkpoint.")] = 3.0,
    shards: Annotated[int, typer.Option(help="Files it is in.")] = 6,
    folder: Annotated[Path | None, typer.Option(help="Where to write; twice its size.")] = None,
) -> None:
    """Measure the peak memory of merging a random checkpoint."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        base, adapter, out = (Path(name) / part for part in ("base", "adapter", "merged"))
        write_adapter(adapter, write_base(base, gigabytes, shards))
        sizes = [file.stat().st_size for file in base.glob("*.safetensors")]
        imports = run_python("-c", "import mmrag_batch.export.merge")
        merged = run_python(
            *("-m", "mmrag_batch", "export", "generator"),
            *("--base", base, "--adapter", adapter, "--out", out),
        )
    typer.echo("| checkpoint | shards | largest | imports | peak | bound | of it | seconds |")
    typer.echo("|---|---|---|---|---|---|---|---|")
    bound = max(sizes) + 2 * GIB
    peaks = [used.peak * 2**20 for used in (imports, merged)]
    cells = [f"{value / GIB:.2f} GiB" for value in (sum(sizes), max(sizes), *peaks, bound)]
    cells.insert(1, str(len(sizes)))
    typer.echo(f"| {' | '.join(cells)} | {peaks[1] / bound:.3f} | {merged.seconds:.1f} |")


if __name__ == "__main__":
    typer.run(main)
