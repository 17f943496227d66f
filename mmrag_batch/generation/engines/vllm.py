"""The `vllm` engine: continuous batching, on a GPU or a CPU.

Requests are fed as others finish, never in chunks, and no more of them than keep the engine busy.
Image preprocessing runs beside the engine, which has a process of its own; if that dies, a new one
takes its place (`supervisor.py`).
"""

import logging
import os
from pathlib import Path
from typing import Literal

from mmrag_batch.errors import UnavailableError
from mmrag_batch.generation.engines.vllm_limits import GIB, Limits, choose_limits, read_shape
from mmrag_batch.generation.engines.vllm_process import Dtype, VllmProcess, prepare_environment
from mmrag_batch.generation.supervisor import Supervisor

log = logging.getLogger(__name__)


def open_vllm_engine(
    generator_dir: Path,
    *,
    device: Literal["auto", "cpu", "cuda"],
    dtype: Literal["auto", "float32", "bfloat16"],
    max_images: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    rows: int | None = None,
    step_tokens: int | None = None,
    kv_cache_gib: int | None = None,
    row_timeout: float | None = None,
    cores: int | None = None,
) -> Supervisor:
    """Start vLLM on a generator directory. `rows`, `step_tokens` and `kv_cache_gib` override what
    is chosen from the model's shape and the device's memory; see `vllm_limits.py`.

    Raises UnavailableError where this build of vLLM does not run on `device` or does not start.
    """
    prepare_environment(cores or os.cpu_count() or 1)
    import psutil
    from vllm import __version__
    from vllm.platforms import current_platform

    here = current_platform.device_type
    if here not in ("cpu", "cuda") or device not in ("auto", here):
        raise UnavailableError(
            f"vLLM {__version__} runs on {here or 'no device'} here, not on {device}. For a GPU: "
            "pip install 'mmrag-batch[gpu]'; or use --engine transformers."
        )
    kind: Dtype = ("bfloat16" if here == "cuda" else "float32") if dtype == "auto" else dtype
    limits = choose_limits(
        read_shape(generator_dir, kind),
        device=here,
        memory=(
            psutil.virtual_memory().available
            if here == "cpu"
            else current_platform.get_device_total_memory()
        ),
        max_images=max_images,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        rows=rows,
        step_tokens=step_tokens,
        kv_cache_gib=kv_cache_gib,
    )
    log.info("vLLM %s on %s in %s: %s.", __version__, here, kind, _in_words(limits))

    def start() -> VllmProcess:
        return VllmProcess(
            generator_dir,
            limits,
            dtype=kind,
            max_images=max_images,
            max_new_tokens=max_new_tokens,
        )

    return Supervisor(start, window=2 * limits.rows, row_timeout=row_timeout)


def _in_words(limits: Limits) -> str:
    cache = limits.kv_cache_bytes
    held = "all that is free" if cache is None else f"{cache / GIB:.2f} GiB"
    return (
        f"{limits.rows} rows at a time of up to {limits.row_tokens:,} tokens, "
        f"{limits.step_tokens:,} tokens a step, a KV cache of {held}"
    )
