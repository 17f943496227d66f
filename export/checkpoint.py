"""A checkpoint in Hugging Face layout as files on disk: which tensor lies where in which shard.

A safetensors file is eight bytes of length, a JSON header of that length, then the tensors, without
gaps. Knowing where a tensor lies, one can be replaced without reading the others.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from mmrag_batch.bundle import PICKLES
from mmrag_batch.errors import ConfigError, DeniedError, MissingError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
BLOCK = 16 * 2**20
"""Most bytes of a tensor that are in memory at a time."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a shard: `begin` and `end` are places in `file`, in bytes."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Its rows in runs of at most `BLOCK` bytes, or of one row: (first, last + 1)."""
        rows = self.shape[0]
        step = max(1, BLOCK * rows // max(1, self.end - self.begin))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))


def shard_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order.

    Raises MissingError where there are none or one of them is not there, DeniedError for an index
    that leaves the directory and for a checkpoint that is pickled.
    """
    index = directory / INDEX
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise DeniedError(f"{index} names files outside of {directory}; do not use it.")
    elif (directory / WHOLE).is_file():
        names = [WHOLE]
    elif any(file.suffix in PICKLES for file in directory.glob("*")):
        raise DeniedError(f"{directory} holds a pickle; save the checkpoint as safetensors.")
    else:
        raise MissingError(f"{directory} holds no {WHOLE} and no {INDEX}; is it a checkpoint?")
    files = [directory / name for name in names]
    for file in files:
        if not file.is_file():
            raise MissingError(f"{file} is missing, which {INDEX} names; copy it again.")
    return files


def read_shard(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file in the order in which they lie there.

    Raises MissingError for a file that is truncated or damaged.
    """
    try:
        with safe_open(file, framework="pt"):  # checks the header, the offsets and the length
            pass
    except SafetensorError as error:
        raise MissingError(f"{file} is damaged ({error}); copy it again.") from None
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    tensors = [
        Tensor(
            name=name,
            file=file,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            begin=8 + size + entry["data_offsets"][0],
            end=8 + size + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    ]
    return sorted(tensors, key=lambda tensor: tensor.begin)


def check_unquantised(directory: Path) -> None:
    """Raise ConfigError for a checkpoint whose weights are quantised."""
    config = read_json(directory / "config.json")
    quantization = config.get("quantization_config") or config.get("text_config", {}).get(
        "quantization_config"
    )
    if quantization:
        method = quantization.get("quant_method", "somehow")
        raise ConfigError(
            f"{directory} is quantised ({method}), and what is merged into it would be rounded "
            "again. Merge into the checkpoint that it was made from: --base DIR."
        )


def read_rows(stream: BinaryIO, tensor: Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a tensor, in its own dtype; `stream` is left behind them."""
    row_bytes = (tensor.end - tensor.begin) // tensor.shape[0]
    stream.seek(tensor.begin + start * row_bytes)
    data = bytearray(stream.read((stop - start) * row_bytes))
    return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).view(-1, *tensor.shape[1:])


def write_rows(stream: BinaryIO, tensor: Tensor, start: int, rows: torch.Tensor) -> None:
    """Put `rows` in the place of the tensor's rows from `start` on."""
    row_bytes = (tensor.end - tensor.begin) // tensor.shape[0]
    stream.seek(tensor.begin + start * row_bytes)
    stream.write(rows.contiguous().view(torch.uint8).numpy().data)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises MissingError where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{file} is missing; copy the checkpoint again.") from None
    except ValueError as error:
        raise MissingError(f"{file} cannot be read: {error}; copy it again.") from None
    if not isinstance(values, dict):
        raise MissingError(f"{file} should hold an object; copy it again.")
    return values
