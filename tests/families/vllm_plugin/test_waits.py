"""How often a step with images makes the host wait for the GPU, counted without one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrag_batch.families.mllama.vllm_plugin.vision import EncodedImages, ImageEncoder

pytestmark = pytest.mark.vllm
READS = {"cpu", "tolist", "item", "nonzero", "__bool__", "__int__", "__index__"}
IMAGE = 9


class OnGpu(Tensor):
    """A tensor, and all that is computed from it, that counts how often its values are needed."""

    waits = 0

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        by_mask = func.__name__ in ("__setitem__", "__getitem__") and (
            isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        )
        cls.waits += func.__name__ in READS or by_mask
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return result.as_subclass(Tensor) if func.__name__ == "cpu" else result


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    OnGpu.waits = 0
    yield


def test_the_tiles_of_a_step_are_padded_without_a_wait() -> None:
    encoder: Any = SimpleNamespace(max_tiles=4)
    pixels = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, 2, 2).as_subclass(OnGpu)
    padded, real = ImageEncoder._padded(encoder, pixels, [3, 1])
    assert OnGpu.waits == 0
    assert padded[:, :, 0, 0, 0].tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert real.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_the_images_of_a_step_are_planned_with_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrag_batch.families.mllama.vllm_plugin import model

    prompts = [[1, IMAGE, 2], [3, 4], [IMAGE, IMAGE, 5, 6], [IMAGE]]
    lengths = [1, 0, 5, 2]
    tiles = [[1], [2, 3], [2]]
    starts = torch.tensor([0, 3, 5, 9, 10], dtype=torch.int32)
    metadata = SimpleNamespace(
        query_start_loc=starts.as_subclass(OnGpu),
        seq_lens=torch.tensor(lengths, dtype=torch.int32).as_subclass(OnGpu),
    )
    monkeypatch.setattr(model, "cross_attention_metadata", lambda name: metadata)
    this: Any = SimpleNamespace(
        image_token_id=IMAGE,
        language_model=SimpleNamespace(cross_attention_name="layer"),
        encoder=SimpleNamespace(tokens=1),
    )
    outputs = [
        EncodedImages(counts, torch.ones(4 * len(counts), 16)).packed().bfloat16()
        for counts in tiles
    ]
    prefill = model.MllamaForConditionalGeneration._prefill(
        this,
        torch.tensor([token for prompt in prompts for token in prompt]).as_subclass(OnGpu),
        [output.as_subclass(OnGpu) for output in outputs],
    )
    assert OnGpu.waits == 1
    assert prefill is not None
    assert prefill.cached == [slice(0, 1), slice(4, 9), slice(12, 14)]
    assert prefill.without_mlp == [slice(0, 1)]
