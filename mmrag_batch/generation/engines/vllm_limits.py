"""How much a vLLM engine takes on at a time, and how many GPUs it needs, from the model's shape and
the device's memory."""

from dataclasses import dataclass

from mmrag_batch.families.family import Shape

GIB = 1 << 30
ANSWER_TOKENS = 256
"""Least room for an answer: choices that are scored as texts may be longer than free-form ones."""
STEP_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Least tokens a step, images apart; more would let those who decode wait for those who begin."""
MAX_ROWS = {"cpu": 64, "cuda": 256}
"""Rows at a time beyond which a device gets no faster."""
GPU_SHARE = 0.85
"""Of a GPU's memory for vLLM, where the rest is room enough for what lies beside it."""
PEAKS = 0.1
"""Of it, what steps with many images take beyond vLLM's share."""
STEP = 5 * GIB
"""Of that share, what the largest step takes."""
USEFUL_ROWS = 8
"""Rows at a time for which the KV cache must have room; else a model is shared by more GPUs."""
CPU_SHARE = 0.25
"""Of the memory that is free, for the KV cache."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What each engine takes: vLLM's `max_num_seqs`, `max_model_len`, `max_num_batched_tokens`,
    `kv_cache_memory_bytes`; and how many engines there are."""

    rows: int
    row_tokens: int
    step_tokens: int
    kv_cache_bytes: int | None
    """Of each GPU. None: what vLLM finds free there."""
    gpu_share: float = GPU_SHARE
    """vLLM's `gpu_memory_utilization`."""
    engines: int = 1
    ranks: int = 1
    """GPUs that share the model of one engine: vLLM's `tensor_parallel_size`."""


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
    gpus: int = 1,
    beside: int = 0,
) -> Limits:
    """What fits: never more rows at a time than the KV cache holds at their longest, and an engine
    for each of `gpus`, unless the model needs several.

    `device` is `cpu` or `cuda`, `memory` its bytes: of the smallest GPU all, of a machine those
    free now; `beside` those that the retriever takes of one GPU. What is given for `rows`,
    `step_tokens` and `kv_cache_gib` is taken as it is, by each engine, and of each GPU.
    """
    row_tokens = min(shape.longest, max_prompt_tokens + max(max_new_tokens, ANSWER_TOKENS))
    encoder_tokens = max_images * shape.encoder_tokens
    row_bytes = row_tokens * shape.self_attention_bytes
    row_bytes += encoder_tokens * shape.cross_attention_bytes
    step_tokens = max(row_tokens, step_tokens or STEP_TOKENS[device])
    given = None if kv_cache_gib is None else kv_cache_gib * GIB
    if device == "cpu":
        free = int(memory * CPU_SHARE) // 2 if given is None else given
        rows = rows or max(1, min(MAX_ROWS[device], free // row_bytes))
        # Twice: whole blocks are handed out.
        cache = max(GIB // 4, 2 * rows * row_bytes) if given is None else given
        return Limits(rows, row_tokens, step_tokens, cache)
    share = min(GPU_SHARE, 1 - PEAKS - beside / memory)
    useful = min(rows or USEFUL_ROWS, USEFUL_ROWS) * row_bytes
    possible = [n for n in range(1, gpus + 1) if gpus % n == 0 and shape.kv_heads % n == 0]
    for ranks in possible:
        divided = (shape.weights - shape.undivided) // ranks
        free = int(memory * share) - STEP - shape.undivided - divided
        if free >= (useful // ranks if given is None else given):
            break
    free = free if given is None else given
    rows = rows or max(1, min(MAX_ROWS[device], free // (row_bytes // ranks)))
    return Limits(rows, row_tokens, step_tokens, given, share, gpus // ranks, ranks)
