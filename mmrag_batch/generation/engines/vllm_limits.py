"""How much a vLLM engine takes on at a time, from the model's shape and the device's memory."""

from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.families.architecture import read_config

ANSWER_TOKENS = 256
"""Least room for an answer: choices that are scored as texts may be longer than free-form ones."""
STEP_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Least tokens a step; more would let those who decode wait for those who begin."""
MAX_ROWS = {"cpu": 64, "cuda": 256}
"""Rows at a time beyond which a device gets no faster."""
ENCODED_AT_ONCE = 4
"""Rows whose images fit in one step: vLLM bounds the encoder's tokens by those of a step."""
GPU_SHARE = 0.85
"""Of the GPU's memory; the retriever's graphs lie beside the engine."""
CPU_SHARE = 0.25
"""Of the memory that is free, for the KV cache."""
BYTES = {"float32": 4, "bfloat16": 2}
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how much memory a row takes. Bytes are those of one token in the KV cache."""

    weights: int
    """Bytes of all weights in the engine's dtype."""
    self_attention_bytes: int
    cross_attention_bytes: int
    encoder_tokens: int
    """Of one image with all its tiles: 6,404 in the 11B."""
    longest: int
    """The most tokens that the model has positions for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """vLLM's `max_num_seqs`, `max_model_len`, `max_num_batched_tokens`, `kv_cache_memory_bytes`."""

    rows: int
    row_tokens: int
    step_tokens: int
    kv_cache_bytes: int | None
    """None: what vLLM finds free on the GPU."""


def read_shape(generator_dir: Path, dtype: str) -> Shape:
    """The shape of the Mllama in a generator directory. Raises as `read_config` does."""
    config = read_config(generator_dir)
    text, vision = config["text_config"], config["vision_config"]
    head = text["hidden_size"] // text["num_attention_heads"]
    kv = 2 * text["num_key_value_heads"] * head * BYTES[dtype]  # a key and a value
    cross = len(text["cross_attention_layers"])
    stored = sum(weights.stat().st_size for weights in generator_dir.glob("*.safetensors"))
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return Shape(
        weights=stored * BYTES[dtype] // BYTES.get(text.get("dtype", dtype), 2),
        self_attention_bytes=kv * (text["num_hidden_layers"] - cross),
        cross_attention_bytes=kv * cross,
        encoder_tokens=vision["max_num_tiles"] * (patches + 1),
        longest=text["max_position_embeddings"],
    )


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
    room = _room(shape, device, memory) if kv_cache_gib is None else kv_cache_gib * GIB
    rows = rows or max(1, min(MAX_ROWS[device], room // row_bytes))
    least = max(row_tokens, encoder_tokens)
    wanted = max(least, STEP_TOKENS[device], min(rows, ENCODED_AT_ONCE) * encoder_tokens)
    kv_cache_bytes = None if kv_cache_gib is None else room
    if device == "cpu" and kv_cache_bytes is None:
        kv_cache_bytes = max(GIB // 4, 2 * rows * row_bytes)  # twice: whole blocks are handed out
    return Limits(rows, row_tokens, max(least, step_tokens or wanted), kv_cache_bytes)


def _room(shape: Shape, device: str, memory: int) -> int:
    """Bytes for the KV cache: what weights and the largest step leave."""
    if device == "cpu":
        return int(memory * CPU_SHARE) // 2
    return int(memory * GPU_SHARE) - shape.weights - 4 * GIB
