"""Settings + bundle -> the stages of a run. What a stage needs is imported when it is built."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal

from mmrag_batch.bundle import Bundle
from mmrag_batch.config import DeviceName, PredictSettings
from mmrag_batch.errors import UnavailableError
from mmrag_batch.stages import Stage

if TYPE_CHECKING:
    from mmrag_batch.generation.engine import Engine

SCRIPTED_WINDOW = 32
OURS = ("mmrag_batch", "train", "export")


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


@contextmanager
def open_stages(settings: PredictSettings, bundle: Bundle) -> Iterator[list[Stage]]:
    """Load the models of a bundle: the retrieval and the generation stage, closed in the end.

    Raises UnavailableError where a package or the device is missing, MissingError where a part of
    the bundle is.
    """
    from mmrag_batch.generation.answerer import Answerer
    from mmrag_batch.generation.rendering import Renderer
    from mmrag_batch.io.images import ImageLoader
    from mmrag_batch.retrieval.retriever import open_retriever

    spec = bundle.manifest.generator
    images = ImageLoader(
        settings.image_root or settings.input.parent, hosts=split_hosts(settings.allow_media_domain)
    )
    with requires("cpu"):
        retriever = open_retriever(
            bundle.retriever_dir,
            bundle.manifest.retriever,
            images,
            top_k=spec.top_k if settings.top_k is None else settings.top_k,
            device=_retriever_device(settings.device),
        )
        engine = _open_engine(settings, bundle)
    with closing(engine):
        answerer = Answerer(
            Renderer(bundle.generator_dir),
            engine,
            images,
            max_images=spec.max_images if settings.max_images is None else settings.max_images,
            max_prompt_tokens=spec.max_prompt_tokens,
            scoring=spec.scoring,
        )
        yield [retriever, answerer]


def _open_engine(settings: PredictSettings, bundle: Bundle) -> "Engine":
    if settings.engine == "scripted":
        return _open_scripted(settings)
    from mmrag_batch.generation.transformers_engine import TransformersEngine

    return TransformersEngine(
        bundle.generator_dir,
        device=settings.device,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype="auto",
    )


def _open_scripted(settings: PredictSettings) -> "Engine":
    from mmrag_batch.generation import scripted_worker
    from mmrag_batch.generation.scripted_engine import ScriptedEngine
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
    """`auto` is a GPU where ONNX Runtime has one: the `cpu` extra on a GPU machine has not."""
    if name != "auto":
        return name
    import onnxruntime

    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"
