"""Settings + bundle -> the stages of a run. What a stage needs is imported when it is built."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmrag_batch.bundle import Bundle, encoders_key
from mmrag_batch.errors import ConfigError, UnavailableError
from mmrag_batch.machine import has_cuda
from mmrag_batch.settings import DeviceName, EngineName, PredictSettings
from mmrag_batch.stages import Stage

if TYPE_CHECKING:
    from mmrag_batch.generation.engine import Engine
    from mmrag_batch.images.loader import ImageLoader

log = logging.getLogger(__name__)
SCRIPTED_WINDOW = 32
OURS = ("mmrag_batch", "train", "export")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
RETRIEVAL_CORES = max(1, CORES // 4)
"""What retrieval may use beside an engine that computes on the others."""


@contextmanager
def requires(extra: str) -> Iterator[None]:
    """Turns a missing package into an UnavailableError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        raise UnavailableError(
            f"{error.name} is not installed. Run `pip install 'mmrag-batch[{extra}]'`."
        ) from None


def split_hosts(setting: str) -> list[str]:
    """The hosts that `allow_media_domain` names."""
    return [host.strip() for host in setting.split(",") if host.strip()]


def open_images(settings: PredictSettings) -> "ImageLoader":
    """Where the images of a run come from."""
    from mmrag_batch.images.loader import ImageLoader

    root = settings.image_root or settings.input.parent
    return ImageLoader(root, hosts=split_hosts(settings.allow_media_domain))


@contextmanager
def open_stages(settings: PredictSettings, bundle: Bundle) -> Iterator[list[Stage]]:
    """Load the models of a bundle: the retrieval and the generation stage, closed in the end.

    Raises UnavailableError where a package or the device is missing, MissingError where a part of
    the bundle is.
    """
    from mmrag_batch.generation.answerer import Answerer
    from mmrag_batch.generation.rendering import Renderer
    from mmrag_batch.retrieval.retriever import open_retriever

    spec = bundle.manifest.generator
    images = open_images(settings)
    name = _engine_name(settings)
    with requires("cpu"):
        retriever = open_retriever(
            bundle.retriever_dir,
            bundle.manifest.retriever,
            images,
            top_k=spec.top_k if settings.top_k is None else settings.top_k,
            device=_retriever_device(settings.device),
            threads=RETRIEVAL_CORES if name == "vllm" else None,
            store=_store(settings, bundle),
        )
    max_images = spec.max_images if settings.max_images is None else settings.max_images
    with closing(_open_engine(name, settings, bundle, max_images)) as engine:
        answerer = Answerer(
            Renderer(bundle.generator_dir),
            engine,
            images,
            max_images=max_images,
            max_prompt_tokens=spec.max_prompt_tokens,
            scoring=spec.scoring,
        )
        yield [retriever, answerer]


def _store(settings: PredictSettings, bundle: Bundle) -> Path | None:
    """Where embeddings of the bundle's encoders are kept."""
    if settings.embedding_cache is None:
        return None
    hashes = bundle.manifest.files.items()
    files = {name.removeprefix("retriever/"): digest for name, digest in hashes}
    return settings.embedding_cache / encoders_key(bundle.manifest.retriever, files)


def _engine_name(settings: PredictSettings) -> EngineName:
    """Which engine `auto` is: vLLM where it is installed and finds a GPU."""
    if settings.engine != "auto":
        return settings.engine
    if settings.device == "cpu" or find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def _open_engine(
    name: EngineName, settings: PredictSettings, bundle: Bundle, max_images: int
) -> "Engine":
    if name == "vllm":
        return _open_vllm(settings, bundle, max_images)
    if name == "openai":
        return _open_openai(settings, bundle)
    if name == "scripted":
        return _open_scripted(settings)
    with requires("cpu"):
        from mmrag_batch.generation.engines.transformers import TransformersEngine

        return TransformersEngine(
            bundle.generator_dir,
            device=settings.device,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            dtype=settings.dtype,
        )


def _open_vllm(settings: PredictSettings, bundle: Bundle, max_images: int) -> "Engine":
    with requires("gpu"):
        from mmrag_batch.generation.engines.vllm import open_vllm_engine

        return open_vllm_engine(
            bundle.generator_dir,
            device=settings.device,
            dtype=settings.dtype,
            max_images=max_images,
            max_prompt_tokens=bundle.manifest.generator.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            rows=settings.engine_rows,
            step_tokens=settings.engine_tokens,
            kv_cache_gib=settings.kv_cache_gib,
            row_timeout=settings.row_timeout,
            cores=max(1, CORES - RETRIEVAL_CORES),
        )


def _open_openai(settings: PredictSettings, bundle: Bundle) -> "Engine":
    if settings.endpoint is None:
        raise ConfigError("--engine openai needs --endpoint, as in --endpoint http://host:8000.")
    with requires("openai"):
        from mmrag_batch.generation.engines.server import OpenAIEngine

        return OpenAIEngine(
            settings.endpoint,
            bundle.generator_dir,
            model=settings.model,
            key=os.environ.get("OPENAI_API_KEY"),
            concurrency=settings.engine_rows or 64,
            max_new_tokens=settings.max_new_tokens,
        )


def _open_scripted(settings: PredictSettings) -> "Engine":
    from mmrag_batch.generation.engines import scripted_worker
    from mmrag_batch.generation.engines.scripted import ScriptedEngine
    from mmrag_batch.generation.supervisor import Supervisor

    if (text := os.environ.get(scripted_worker.VARIABLE)) is None:
        return ScriptedEngine()
    script = scripted_worker.read_script(text)
    return Supervisor(
        lambda: scripted_worker.ScriptedWorker(script),
        window=SCRIPTED_WINDOW,
        row_timeout=settings.row_timeout,
    )


def _retriever_device(name: DeviceName) -> Literal["cpu", "cuda"]:
    """`auto` is a GPU where there is one that ONNX Runtime can use: the `cpu` extra can use none,
    and a login node with the `gpu` extra has none."""
    if name != "auto":
        return name
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "cpu"
    if has_cuda():
        return "cuda"
    log.info("There is no GPU here: retrieval runs on the CPU.")
    return "cpu"
