"""Settings and a bundle -> the stages of a run. What was parsed stops here, and at the functions
that open engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mmrag_batch.bundle import Bundle
from mmrag_batch.machine import retrieval_cores
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import Stage

if TYPE_CHECKING:
    from mmrag_batch.images.loader import ImageLoader


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
    from mmrag_batch.generation.engine import open_engine
    from mmrag_batch.generation.rendering import Renderer
    from mmrag_batch.retrieval.candidates import open_source
    from mmrag_batch.retrieval.retriever import Retriever

    said = bundle.manifest.generator
    spec = PromptSpec(
        said.max_images if settings.max_images is None else settings.max_images,
        said.max_prompt_tokens,
        said.scoring,
    )
    images = open_images(settings)
    name = _engine_name(settings)
    threads = retrieval_cores() if name == "vllm" else None
    candidates = open_source(settings.candidates, settings, bundle, images, threads)
    with open_engine(name, settings, bundle, spec) as engine:
        yield [
            Retriever(candidates),
            Answerer(Renderer(bundle.generator_dir), engine, images, spec),
        ]


def _engine_name(settings: PredictSettings) -> str:
    """Which engine `auto` is: vLLM where it is installed and finds a GPU."""
    if settings.engine != "auto":
        return settings.engine
    if settings.device == "cpu" or find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"
