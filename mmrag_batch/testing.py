"""A small working example of each plug point, without a model: for tests of a plug-in's neighbours,
and to begin a new one from.

    add_engine("first", open_first_choice)      predict --engine first
    add_source("first", open_first_documents)   predict --candidates first
    add_executor("turns", run_in_turns)         predict --executor turns
    add_format(KeyValues())                     predict in.kv out.kv
    add_family("LlamaForCausalLM", TextLlama)   a generator of that architecture
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import InputError
from mmrag_batch.families.family import BYTES, Shape, pad_left, read_config
from mmrag_batch.generation.engine import Request, Result
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Evidence, Row
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import ImageStore, OpenStage, open_stages
from mmrag_batch.table.record import Record

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class FirstChoice:
    """An engine that finds the first of the tokens it is to score the likeliest, and writes
    `first` as if nothing else could be."""

    window = 1

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """One result a request, at once."""
        for request in requests:
            if request.score:
                logits = tuple(-float(place) for place in range(len(request.score)))
                yield Result(request.key, logits=logits)
            else:
                yield Result(request.key, text="first", logprobs=(0.0,))

    def close(self) -> None:
        """It holds nothing."""


def open_first_choice(
    _settings: PredictSettings, _bundle: Bundle, _spec: PromptSpec
) -> FirstChoice:
    """Opens the engine."""
    return FirstChoice()


class FirstDocuments:
    """A source that takes the first two documents of a row as they stand, unread."""

    def find(self, rows: Sequence[Row], /) -> list[tuple[Evidence, ...]]:
        """Of equal scores, so in their order."""
        questions = [row.question for row in rows]
        documents = [question.documents[:2] if question else () for question in questions]
        return [tuple(Evidence(document, 1.0) for document in some) for some in documents]


def open_first_documents(
    _settings: PredictSettings, _bundle: Bundle, _images: ImageStore, _threads: int | None
) -> FirstDocuments:
    """Opens the source."""
    return FirstDocuments()


def run_in_turns(
    rows: Iterable[Row],
    stages: Sequence[OpenStage],
    keep: Callable[[Row], None],
    *,
    is_stopped: Callable[[], bool],
) -> None:
    """An executor without threads: a row at a time goes through all stages."""
    with open_stages(stages) as opened:
        for row in rows:
            if is_stopped():
                return
            passing: Iterable[Row] = [row]
            for stage in opened:
                passing = stage(passing)
            for done in passing:
                keep(done)


class KeyValues:
    """A format with one `name=JSON` a column on each line, between tabs."""

    suffixes = (".kv",)

    def columns(self, path: Path) -> Sequence[str]:
        """Every name of any row, as first met."""
        return tuple(dict.fromkeys(name for one in self.records(path) for name in one.cells))

    def records(self, path: Path) -> Iterator[Record]:
        """A row a line."""
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                pairs = (item.partition("=") for item in line.rstrip("\n").split("\t"))
                try:
                    yield Record(number, {name: json.loads(text) for name, _, text in pairs})
                except ValueError as error:
                    raise InputError(f"{path}, line {number}: {error}") from None

    def writer(
        self,
        columns: Sequence[str],
        table: Path | None = None,  # noqa: ARG002  # its types do not matter here
    ) -> "KeyValuesWriter":
        """Writes rows."""
        return KeyValuesWriter(columns)


class KeyValuesWriter:
    """Rows as `KeyValues` reads them."""

    header = b""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def row(self, values: Mapping[str, object]) -> bytes:
        """One line."""
        items = (f"{name}={json.dumps(values.get(name))}" for name in self._columns)
        return ("\t".join(items) + "\n").encode()

    def end(self) -> bytes:
        """Nothing stands after the last row."""
        return b""


class TextLlama:
    """A family of models that read texts alone: images are passed over."""

    placeholder = "<|image|>"
    image_token_id = -1  # its tokenizer need not know of any
    has_image_tokens = False

    def __init__(self, generator_dir: Path) -> None:
        self._directory = generator_dir

    def load(
        self,
        *,
        dtype: "torch.dtype",
        quantization: Any = None,
        device: "torch.device | None" = None,
    ) -> Any:
        """The model."""
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM.from_pretrained(
            self._directory,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            quantization_config=quantization,
            device_map=device,
        )

    def image_ids(self, size: tuple[int, int]) -> Sequence[int]:  # noqa: ARG002
        """None of an image."""
        return ()

    @staticmethod
    def module_name(name: str) -> str:
        """As on disk."""
        return name

    def collate(
        self,
        token_ids: Sequence[Sequence[int]],
        images: Sequence[Sequence["Image"]],  # noqa: ARG002  # it sees none
        *,
        pad_id: int,
    ) -> "dict[str, torch.Tensor]":
        """One left-padded batch."""
        import torch

        padded, attended = pad_left(token_ids, pad_id)
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(attended)}

    def shape(self, dtype: str) -> Shape:
        """What a row takes."""
        config, size = read_config(self._directory), BYTES[dtype]
        head = config["hidden_size"] // config["num_attention_heads"]
        token = 2 * size * head * config["num_key_value_heads"] * config["num_hidden_layers"]
        stored = sum(file.stat().st_size for file in self._directory.glob("*.safetensors"))
        return Shape(stored, token, 0, 0, config["max_position_embeddings"])

    def vllm_arguments(self, max_images: int) -> Mapping[str, Any]:  # noqa: ARG002
        """vLLM knows the architecture."""
        return {}
