"""The `vllm` engine: continuous batching, on a GPU or a CPU.

Requests are fed as others finish, never in chunks, and no more of them than keep the engine busy.
Image preprocessing runs beside the engine, which has a process of its own; if that dies, a new one
takes its place (`supervisor.py`).
"""

import logging

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import UnavailableError
from mmrag_batch.families.family import open_family
from mmrag_batch.generation.engine import Engine
from mmrag_batch.generation.engines.vllm_limits import GIB, Limits, choose_limits
from mmrag_batch.generation.engines.vllm_process import Dtype, VllmProcess, prepare_environment
from mmrag_batch.generation.supervisor import Supervisor
from mmrag_batch.machine import cores, install, retrieval_cores
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import PredictSettings

log = logging.getLogger(__name__)


def open_engine(settings: PredictSettings, bundle: Bundle, spec: PromptSpec) -> Engine:
    """Start vLLM on a bundle's generator. `engine_rows`, `engine_tokens` and `kv_cache_gib` replace
    what is chosen from the model's shape and the device's memory; see `vllm_limits.py`.

    Raises UnavailableError where this build of vLLM does not run on the device or does not start.
    """
    prepare_environment(max(1, cores() - retrieval_cores()))
    import psutil
    from vllm import __version__
    from vllm.platforms import current_platform

    device = current_platform.device_type
    if device not in ("cpu", "cuda") or settings.device not in ("auto", device):
        raise UnavailableError(
            f"vLLM {__version__} runs on {device or 'no device'} here, not on {settings.device}. "
            f"For a GPU: {install('gpu')}; or use --engine transformers."
        )
    default: Dtype = "bfloat16" if device == "cuda" else "float32"
    dtype = default if settings.dtype == "auto" else settings.dtype
    family = open_family(bundle.generator_dir)
    limits = choose_limits(
        family.shape(dtype),
        device=device,
        memory=(
            psutil.virtual_memory().available
            if device == "cpu"
            else current_platform.get_device_total_memory()
        ),
        max_images=spec.max_images,
        max_prompt_tokens=spec.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
        rows=settings.engine_rows,
        step_tokens=settings.engine_tokens,
        kv_cache_gib=settings.kv_cache_gib,
    )
    log.info("vLLM %s on %s in %s: %s.", __version__, device, dtype, _describe(limits))

    def start() -> VllmProcess:
        return VllmProcess(
            bundle.generator_dir,
            limits,
            dtype=dtype,
            max_new_tokens=settings.max_new_tokens,
            family=family,
            max_images=spec.max_images,
        )

    return Supervisor(start, window=2 * limits.rows, row_timeout=settings.row_timeout)


def _describe(limits: Limits) -> str:
    cache = limits.kv_cache_bytes
    cache_size = "all that is free" if cache is None else f"{cache / GIB:.2f} GiB"
    return (
        f"{limits.rows} rows at a time of up to {limits.row_tokens:,} tokens, "
        f"{limits.step_tokens:,} tokens a step, a KV cache of {cache_size}"
    )
