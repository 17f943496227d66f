"""A checkpoint's processor: its tokenizer, and what prepares its images with Pillow.

Always Pillow: torchvision's resizing differs by up to 0.016 a pixel, and which of the two the
automatic classes take depends on what is installed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from mmrag_batch.errors import ConfigError, UnavailableError

MAX_PIXELS = 1280 * 28 * 28
"""Of an image, where its tokens are as many as its pixels: the 12.8 million that Qwen2.5-VL allows
are 16,384 tokens, these are 1,280."""


def load_processor(generator_dir: Path) -> Any:
    """The processor of a generator directory, without what it would need for videos.

    Raises ConfigError where transformers has none for its architecture, UnavailableError where it
    needs a package that is not there.
    """
    try:
        return _load(generator_dir)
    except ImportError as error:
        problem = f"its processor cannot be loaded: {error}"
        raise UnavailableError(f"{generator_dir}: {problem}") from None


def _load(generator_dir: Path) -> Any:
    config = AutoConfig.from_pretrained(generator_dir, local_files_only=True)
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None:
        problem = f"transformers has no processor for {config.model_type}"
        raise ConfigError(f"{generator_dir}: {problem}.")
    pictures: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": _is_wanted})
    said, _ = kind.get_processor_dict(generator_dir, local_files_only=True)
    parts = [_load_part(kind, name, generator_dir) for name in kind.get_attributes()]
    processor = pictures.from_args_and_dict(parts, said)
    for name, value in pixel_limit(processor.image_processor).items():
        setattr(processor.image_processor, name, value)
    return processor


def pixel_limit(image_processor: Any) -> Mapping[str, Any]:
    """What is set of an image processor so that no image has more than MAX_PIXELS; nothing of one
    that cuts images into tiles."""
    size = dict(image_processor.size)
    if not {"shortest_edge", "longest_edge"} <= size.keys() or not hasattr(
        image_processor, "merge_size"
    ):
        return {}
    return {"size": {**size, "longest_edge": min(size["longest_edge"], MAX_PIXELS)}}


def image_ids(processor: Any, placeholder: str, size: tuple[int, int]) -> tuple[int, ...]:
    """The tokens that stand for an image of that width and height."""
    blank = Image.new("RGB", size)
    ids = processor(text=[placeholder], images=[blank], add_special_tokens=False)["input_ids"]
    return tuple(ids[0])


def _load_part(kind: Any, name: str, generator_dir: Path) -> Any:
    if name == "image_processor":
        return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            generator_dir, local_files_only=True, backend="pil"
        )
    if "tokenizer" in name:
        return kind._load_tokenizer_from_pretrained(name, generator_dir, local_files_only=True)
    return None


def _is_wanted(self: Any, name: str, part: Any) -> Any:
    """The check of a processor's parts: it needs none for videos."""
    if part is None:
        return None
    return super(type(self), self).check_argument_for_proper_class(name, part)
