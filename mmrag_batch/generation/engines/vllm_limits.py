"""How much a vLLM engine takes on at a time, from the model's shape and the device's memory."""

from dataclasses import dataclass

from mmrag_batch.families.family import Shape

ANSWER_TOKENS = 256
"""Least room for an answer: choices that are scored as texts may be longer than free-form ones."""
STEP_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Least tokens a step, images apart; more would let those who decode wait for those who begin."""
MAX_ROWS = {"cpu": 64, "cuda": 256}
"""Rows at a time beyond which a device gets no faster."""
GPU_SHARE = 0.85
"""Of the GPU's memory; the retriever's graphs lie beside the engine."""
CPU_SHARE = 0.25
"""Of the memory that is free, for the KV cache."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """vLLM's `max_num_seqs`, `max_model_len`, `max_num_batched_tokens`, `kv_cache_memory_bytes`."""

    rows: int
    row_tokens: int
    step_tokens: int
    kv_cache_bytes: int | None
    """None: what vLLM finds free on the GPU."""


def choose_limits(
    shape: Shape,
    *,
    device: str,
    memory: int,
    max_images: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    rows: int | None,
    step_tokens: int | None,
    kv_cache_gib: int | None,
) -> Limits:
    """What fits: never more rows at a time than the KV cache holds at their longest.

    `device` is `cpu` or `cuda`, `memory` its bytes: of a GPU all, of a machine those free now. What
    is given for `rows`, `step_tokens` and `kv_cache_gib` is taken as it is.
    """
    row_tokens = min(shape.longest, max_prompt_tokens + max(max_new_tokens, ANSWER_TOKENS))
    encoder_tokens = max_images * shape.encoder_tokens
    row_bytes = row_tokens * shape.self_attention_bytes
    row_bytes += encoder_tokens * shape.cross_attention_bytes
    cache_budget = (
        _cache_budget(shape, device, memory) if kv_cache_gib is None else kv_cache_gib * GIB
    )
    rows = rows or max(1, min(MAX_ROWS[device], cache_budget // row_bytes))
    kv_cache_bytes = None if kv_cache_gib is None else cache_budget
    if device == "cpu" and kv_cache_bytes is None:
        kv_cache_bytes = max(GIB // 4, 2 * rows * row_bytes)  # twice: whole blocks are handed out
    step_tokens = max(row_tokens, step_tokens or STEP_TOKENS[device])
    return Limits(rows, row_tokens, step_tokens, kv_cache_bytes)


def _cache_budget(shape: Shape, device: str, memory: int) -> int:
    """Bytes for the KV cache: what weights and the largest step leave."""
    if device == "cpu":
        return int(memory * CPU_SHARE) // 2
    return int(memory * GPU_SHARE) - shape.weights - 5 * GIB
