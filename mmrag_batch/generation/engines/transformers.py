"""The `transformers` engine: batches on a CPU or a GPU, nothing to install but torch.

Logits take one forward pass, texts are generated greedily.
Image preprocessing and padding of the next batches run in a thread beside the forward pass.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import UnavailableError
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.engine import Engine, Request, Result
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Problem
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import in_batches, prefetch

LOOKAHEAD = 8
"""Batches that are read ahead to put rows of one kind and of similar length together."""
PREPARED = 2
"""Batches that wait, padded, for the model."""

Batch = list[Request]
Inputs = dict[str, torch.Tensor]
log = logging.getLogger(__name__)


def open_engine(settings: PredictSettings, bundle: Bundle, _spec: PromptSpec) -> Engine:
    """The bundle's generator on this machine."""
    return TransformersEngine(
        bundle.generator_dir,
        device=settings.device,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=settings.dtype,
    )


class TransformersEngine:
    """A checkpoint of any family, run by transformers.

    A row's answer does not depend on the rows beside it, up to rounding: rows of a batch have the
    same number of images and what pads them is masked.
    """

    def __init__(
        self,
        generator_dir: Path,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_size: int,
        max_new_tokens: int,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        model: Any = None,
    ) -> None:
        """`model` is one that is in memory already, for instance while it is trained."""
        self._family = open_family(generator_dir)
        self._device = _device(device) if model is None else model.device
        if model is None:
            model = self._family.load(dtype=_dtype(dtype, self._device)).to(self._device)
        self._model = model  # Any: the annotations of `to` and `generate` mislead
        self._tokenizer = Tokenizer.from_file(str(generator_dir / "tokenizer.json"))
        self._generation = _greedy(self._model.generation_config, max_new_tokens)
        self._batch_size = batch_size
        # A batch beyond those prepared is in the model's hands and one more in the thread's.
        self.window = (LOOKAHEAD + PREPARED + 2) * batch_size

    @property
    def model(self) -> Any:
        """What generates, until it is closed."""
        return self._model

    def generate(self, requests: Iterable[Request], /) -> Iterator[Result]:
        """Yield one result for each request, batch by batch."""
        batches = batched(requests, self._batch_size)
        for batch, inputs in prefetch(map(self._prepare, batches), PREPARED):
            yield from self._run(batch, inputs)

    def close(self) -> None:
        """Free the model."""
        self._model = None

    def _prepare(self, batch: Batch) -> tuple[Batch, Inputs | Exception]:
        """The batch with its tensors, or with what went wrong while making them."""
        try:
            return batch, self._collate(batch)
        except MemoryError:
            raise
        except Exception as error:
            return batch, error

    def _run(self, batch: Batch, inputs: Inputs | Exception) -> list[Result]:
        """The results of a batch; where it fails, its rows are tried one by one."""
        try:
            if isinstance(inputs, Exception):
                raise inputs
            return self._forward(batch, inputs)
        except MemoryError:
            raise
        except Exception as error:
            if len(batch) == 1:
                return [_failed(batch[0], error)]
            log.warning("A batch of %d failed, trying its rows alone: %s", len(batch), error)
        return [result for one in batch for result in self._run(*self._prepare([one]))]

    def _collate(self, batch: Batch) -> Inputs:
        return self._family.collate(
            [request.token_ids for request in batch],
            [request.images for request in batch],
            pad_id=self._generation.pad_token_id,
        )

    @torch.inference_mode()
    def _forward(self, batch: Batch, inputs: Inputs) -> list[Result]:
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        return self._score(batch, inputs) if batch[0].score else self._write(batch, inputs)

    def _score(self, batch: Batch, inputs: Inputs) -> list[Result]:
        logits = self._model(**inputs, logits_to_keep=1, use_cache=False).logits  # (B, 1, V)
        rows = logits[:, -1].float().cpu()
        return [
            Result(request.key, logits=tuple(row[list(request.score)].tolist()))
            for request, row in zip(batch, rows)
        ]

    def _write(self, batch: Batch, inputs: Inputs) -> list[Result]:
        steps = _Steps()
        sequences = self._model.generate(  # (B, L + new)
            **inputs,
            generation_config=self._generation,
            logits_processor=LogitsProcessorList([steps]),
        )
        answers = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        written = [self._cut(answer) for answer in answers]
        texts = self._tokenizer.decode_batch(written, skip_special_tokens=True)
        logprobs = torch.stack(steps.logprobs, dim=1).tolist()  # (B, new)
        return [
            Result(request.key, text=text.strip(), logprobs=tuple(row[: len(ids)]))
            for request, text, ids, row in zip(batch, texts, written, logprobs)
        ]

    def _cut(self, answer: Sequence[int]) -> Sequence[int]:
        """What was generated up to its end token; padding comes after it."""
        ends = self._generation.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        count = next((n for n, token in enumerate(answer, start=1) if token in ends), len(answer))
        return answer[:count]


class _Steps(LogitsProcessor):
    """Notes the log-probability (B,) of the likeliest token at each step: the one that is taken.

    All logits of all steps, which `generate` would keep, are 16 GB for a batch of long answers.
    """

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores.float()
        self.logprobs.append((logits.amax(-1) - logits.logsumexp(-1)).cpu())
        return scores


def batched(requests: Iterable[Request], size: int) -> Iterator[Batch]:
    """Batches of up to `size` requests with the same number of images and the same kind of answer.

    Reads `LOOKAHEAD` batches at a time and sorts them by length, so that little is padded.
    """
    for window in in_batches(requests, LOOKAHEAD * size):
        window.sort(key=lambda request: (*_kind(request), len(request.token_ids)))
        for _, group in groupby(window, key=_kind):
            yield from in_batches(group, size)


def _kind(request: Request) -> tuple[int, bool]:
    return len(request.images), bool(request.score)


def _failed(request: Request, error: Exception) -> Result:
    message = f"The engine could not answer: {type(error).__name__}: {error}"
    is_oom = isinstance(error, torch.OutOfMemoryError)
    code = "engine_oom" if is_oom else "engine_failed"
    return Result(request.key, error=Problem(code, message))


def _greedy(defaults: GenerationConfig, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding with the checkpoint's own end and padding tokens."""
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max_new_tokens,
        bos_token_id=defaults.bos_token_id,
        eos_token_id=defaults.eos_token_id,
        pad_token_id=defaults.pad_token_id,
    )


def _device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("No CUDA device is available here; use --device cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32
