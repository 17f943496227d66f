"""Settings and a bundle -> the stages of a run. What was parsed stops here, and at the functions
that open engines."""

import gc
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from mmrag_batch.bundle import Bundle, open_bundle, read_manifest
from mmrag_batch.errors import ConfigError, MissingError, MmragError
from mmrag_batch.machine import retrieval_cores
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import ImageStore, OpenStage, Stage

if TYPE_CHECKING:
    from mmrag_batch.generation.rendering import Rendering

log = logging.getLogger(__name__)


def split_hosts(setting: str) -> list[str]:
    """The hosts that `allow_media_domain` names, or the places that `allow_remote` does."""
    return [host.strip() for host in setting.split(",") if host.strip()]


def open_images(settings: PredictSettings) -> ImageStore:
    """Where the images of a run come from. Raises what `read_corpus` does."""
    from mmrag_batch.images.both import TableAndCorpus
    from mmrag_batch.images.loader import ImageLoader
    from mmrag_batch.retrieval.candidates import find_address
    from mmrag_batch.retrieval.corpus_manifest import find_image_root

    root = settings.image_root or settings.input.parent
    hosts, places = split_hosts(settings.allow_media_domain), split_hosts(settings.allow_remote)
    images = ImageLoader(root, hosts=hosts, places=places)
    if settings.corpus is None:
        return images
    if find_address(settings.corpus):  # its pictures are named as those of the table are
        return TableAndCorpus(images, images)
    root = find_image_root(settings.corpus)
    return TableAndCorpus(images, ImageLoader(root, hosts=hosts, places=places))


def load_bundle(settings: PredictSettings, *, weights: bool = True) -> Bundle:
    """The bundle of a run. Raises what `open_bundle` does; nothing is wrong with a generator that
    the engine does not need, nor without `weights` with those of any."""
    from mmrag_batch.generation.engine import takes_messages

    if takes_messages(settings.engine):
        return open_bundle(settings.bundle, without="generator/*")
    return open_bundle(settings.bundle, without="" if weights else "generator/*.safetensors")


def find_stages(settings: PredictSettings, bundle: Bundle) -> list[OpenStage]:
    """The retrieval and the generation stage of a bundle, to be opened where they are to run.

    Raises ConfigError for several GPUs and an engine that uses one. Opening raises UnavailableError
    where a package or the device is missing, MissingError where a part of the bundle is.
    """
    if settings.ray is None:  # else they may be opened where there are other devices
        _check_gpus(settings)
    parts = (settings, bundle, open_images(settings))
    return [partial(open_retrieval, *parts), partial(open_generation, *parts)]


def _check_gpus(settings: PredictSettings) -> None:
    if settings.gpus > 1 and (name := _engine_name(settings)) != "vllm":
        raise ConfigError(
            f"--gpus {settings.gpus}: only --engine vllm uses several, and this run is answered by "
            f"--engine {name}. Leave --gpus out, or choose --engine vllm."
        )


@contextmanager
def open_retrieval(
    settings: PredictSettings, bundle: Bundle, images: ImageStore
) -> Iterator[Stage]:
    """The stage that finds evidence."""
    from mmrag_batch.retrieval.candidates import name_source, open_source
    from mmrag_batch.retrieval.retriever import Retriever

    _check_here(bundle)
    with _loading("retriever"):
        threads = retrieval_cores() if _engine_name(settings) == "vllm" else None
        with _blaming(bundle.retriever_dir):
            source = open_source(name_source(settings), settings, bundle, images, threads)
    yield Retriever(source)


@contextmanager
def open_generation(
    settings: PredictSettings, bundle: Bundle, images: ImageStore
) -> Iterator[Stage]:
    """The stage that answers; its engine is closed in the end."""
    from mmrag_batch.generation.answerer import Answerer
    from mmrag_batch.generation.engine import open_engine

    _check_here(bundle)
    _check_gpus(settings)
    renderer, spec = open_rendering(settings, bundle)
    with ExitStack() as stack:
        with _loading("generator"), _blaming(bundle.generator_dir):
            name = _engine_name(settings)
            log.debug("The engine is %s.", name)
            engine = stack.enter_context(open_engine(name, settings, bundle, spec))
        yield Answerer(renderer, engine, images, spec)


def open_rendering(settings: PredictSettings, bundle: Bundle) -> "tuple[Rendering, PromptSpec]":
    """How prompts become tokens, and how they are made. Raises as opening a stage does."""
    from mmrag_batch.generation.engine import takes_messages
    from mmrag_batch.generation.rendering import Renderer, Unrendered

    said, by_messages = bundle.manifest.generator, takes_messages(settings.engine)
    spec = PromptSpec(
        said.max_images if settings.max_images is None else settings.max_images,
        said.max_prompt_tokens,
        "letter" if by_messages else said.scoring,
        bundle.manifest.template_version,
    )
    with _blaming(bundle.generator_dir):
        return Unrendered() if by_messages else Renderer(bundle.generator_dir), spec


@contextmanager
def _loading(part: str) -> Iterator[None]:
    """Says what is being loaded while it is, and how long it took.

    The collector of garbage rests: it would look again and again through all that libraries define,
    which was a tenth of the time to the first answer.
    """
    began, collects = monotonic(), gc.isenabled()
    gc.disable()
    try:
        with Progress(f"Loading the {part}"):
            yield
    finally:
        if collects:
            gc.enable()
    log.info("The %s is ready, after %.1f s.", part, monotonic() - began)


def _check_here(bundle: Bundle) -> None:
    """A stage may be opened on another machine than its bundle was. Raises MissingError if that
    bundle is not there."""
    if read_manifest(bundle.path) != bundle.manifest:
        raise MissingError(
            f"{bundle.path} is not the bundle here that it was where the run was started. Put it "
            "where all nodes see it, or copy it again."
        )


@contextmanager
def _blaming(directory: Path) -> Iterator[None]:
    """Files that are whole can still be broken inside, and the libraries that read them say so in
    ways of their own. Raises MissingError."""
    try:
        yield
    except (MmragError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # it is the disk that fails
            raise
        what = f"{type(error).__name__}: {str(error)[:1000]}"
        raise MissingError(f"{directory} cannot be loaded; export it again. {what}") from error


def _engine_name(settings: PredictSettings) -> str:
    """Which engine `auto` is: vLLM where it is installed and finds a GPU."""
    if settings.engine != "auto":
        return settings.engine
    if settings.device == "cpu" or find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"
