"""Which rows of a step the cross-attention layers look at, and when they look at none."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.vllm


def test_rows_are_found_by_their_requests() -> None:
    from mmrag_batch.families.mllama.vllm_plugin.cross_attention import rows_with_images

    starts = torch.tensor([0, 3, 4, 6], dtype=torch.int32)  # three requests of 3, 1 and 2 rows
    lengths = torch.tensor([5, 0, 7], dtype=torch.int32)
    rows = rows_with_images(starts, lengths, num_rows=6).flatten().tolist()
    assert rows == [True, True, True, False, True, True]


@pytest.mark.parametrize(("longest", "attended"), [(0, False), (7, True)])
def test_a_step_without_images_leaves_the_layer_out(
    monkeypatch: pytest.MonkeyPatch, longest: int, attended: bool
) -> None:
    from mmrag_batch.families.mllama.vllm_plugin import cross_attention

    class ReachedError(Exception):
        pass

    def reached(*_: object) -> None:
        raise ReachedError

    metadata = SimpleNamespace(
        query_start_loc=torch.tensor([0, 2]), seq_lens=torch.tensor([7]), max_seq_len=longest
    )
    monkeypatch.setattr(cross_attention, "cross_attention_metadata", lambda _: metadata)
    layer: Any = SimpleNamespace(
        cross_attn=SimpleNamespace(attn=SimpleNamespace(layer_name="x")), input_layernorm=reached
    )
    run = cross_attention.MllamaCrossAttentionLayer.forward
    if attended:
        with pytest.raises(ReachedError):
            run(layer, torch.zeros(2, 4))
    else:
        run(layer, torch.zeros(2, 4))
