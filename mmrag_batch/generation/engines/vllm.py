"""The `vllm` engine: continuous batching, on a GPU or a CPU.

Requests are fed as others finish, never in chunks, and no more of them than keep the engine busy.
Image preprocessing runs beside the engine, which has a process of its own; if that dies, a new one
takes its place (`supervisor.py`).

On several GPUs each engine is a worker of its own, and no rank of vLLM's data parallelism: there,
one thread prepares the images of all, a row's requests go to different engines, and the death of
one engine ends them all.
"""

import logging
from functools import partial

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
    prepare_environment(max(1, (cores() - retrieval_cores()) // settings.gpus))
    import psutil
    from vllm import __version__
    from vllm.platforms import current_platform

    device = current_platform.device_type
    if device not in ("cpu", "cuda") or settings.device not in ("auto", device):
        raise UnavailableError(
            f"vLLM {__version__} runs on {device or 'no device'} here, not on {settings.device}. "
            f"For a GPU: {install('gpu')}; or use --engine transformers."
        )
    if device == "cuda":
        _check_gpus(settings.gpus, current_platform.device_count())
    elif settings.gpus > 1:
        raise UnavailableError(
            f"--gpus {settings.gpus}: vLLM {__version__} runs on a CPU here. Leave --gpus out; for "
            f"GPUs: {install('gpu')}."
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
            else min(map(current_platform.get_device_total_memory, range(settings.gpus)))
        ),
        max_images=spec.max_images,
        max_prompt_tokens=spec.max_prompt_tokens,
        max_new_tokens=settings.max_new_tokens,
        rows=settings.engine_rows,
        step_tokens=settings.engine_tokens,
        kv_cache_gib=settings.kv_cache_gib,
        gpus=settings.gpus,
        beside=_beside(bundle),
    )
    log.info("vLLM %s on %s in %s: %s.", __version__, device, dtype, _describe(limits))

    start = partial(
        VllmProcess,
        bundle.generator_dir,
        limits,
        dtype=dtype,
        max_new_tokens=settings.max_new_tokens,
        family=family,
        max_images=spec.max_images,
    )
    return Supervisor(
        *(partial(start, place=place) for place in range(limits.engines)),
        window=2 * limits.rows * limits.engines,
        row_timeout=settings.row_timeout,
    )


def _check_gpus(asked: int, visible: int) -> None:
    """Raises UnavailableError where there are fewer than were asked for; says so where there are
    more."""
    if asked > visible:
        raise UnavailableError(
            f"--gpus {asked}, but {visible} are visible here; CUDA_VISIBLE_DEVICES and what Slurm "
            f"allots say which. Use --gpus {visible}, or ask for more."
        )
    if asked < visible:
        verb = "is" if asked == 1 else "are"
        log.info(
            "%d of %d visible GPUs %s used; --gpus %d uses all.", asked, visible, verb, visible
        )


def _beside(bundle: Bundle) -> int:
    """Bytes that the retriever takes of the first GPU: its graphs, and a GiB to run them."""
    return GIB + sum(file.stat().st_size for file in bundle.retriever_dir.glob("*.onnx*"))


def _describe(limits: Limits) -> str:
    cache = limits.kv_cache_bytes
    cache_size = "all that is free" if cache is None else f"{cache / GIB:.2f} GiB"
    engines = f"{limits.engines} engines, each with " if limits.engines > 1 else ""
    engines += f"{limits.ranks} GPUs that share the model, " if limits.ranks > 1 else ""
    return (
        f"{engines}{limits.rows} rows at a time of up to {limits.row_tokens:,} tokens, "
        f"{limits.step_tokens:,} tokens a step, a KV cache of {cache_size}"
    )
