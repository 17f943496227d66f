"""What the image processor of a CLIP or SigLIP checkpoint does, as fields of a retriever's spec.

Read as transformers reads it: a field that is absent has the default of its class. What cannot be
done to pictures here, in one resize, one cut and one scale and shift of each channel, is refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmrag_batch.bundle import Resample
from mmrag_batch.errors import ConfigError, MissingError
from mmrag_batch.export.checkpoint import read_json

FILE, NESTED = "preprocessor_config.json", "processor_config.json"
"""The second is what transformers 5 writes for a whole processor."""
CLASSES: dict[str, type[Any]] = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}
HONOURED = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
NEUTRAL = frozenset(
    {
        "_valid_processor_keys",
        "data_format",
        "default_to_square",
        "device",
        "disable_grouping",
        "do_convert_rgb",  # pictures are in RGB before they come here
        "feature_extractor_type",
        "image_processor_type",
        "image_seq_length",
        "input_data_format",
        "pad_size",  # without do_pad
        "processor_class",
        "return_tensors",
    }
)
"""What changes no pixel of a picture in RGB."""


def read_image_settings(directory: Path, kind: str, image_size: int) -> dict[str, Any]:
    """How pictures of `image_size` are prepared for a checkpoint of that `model_type`.

    Raises MissingError where no file says so, ConfigError with every field that cannot be honoured.
    """
    file, given = _read(directory)
    defaults = {name: getattr(CLASSES[kind], name, None) for name in HONOURED}
    stated = {name: value for name, value in given.items() if value is not None}
    values = {"rescale_factor": 1 / 255, **defaults, **stated}
    problems = [*_unknown(stated, kind), *_pixels(values)]
    side, framing, shapes = _framing(values, image_size)
    if problems := [*problems, *shapes]:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    mean, std = _scale(values)
    return {
        "image_size": side,
        "image_mean": mean,
        "image_std": std,
        "framing": framing,
        "resample": Image.Resampling(values["resample"]).name.lower(),
    }


def _read(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    if not (directory / FILE).is_file() and (directory / NESTED).is_file():
        nested = read_json(directory / NESTED).get("image_processor")
        if isinstance(nested, dict):
            return directory / NESTED, nested
    try:
        return directory / FILE, read_json(directory / FILE)
    except MissingError:
        raise MissingError(
            f"{directory / FILE} is missing or damaged; copy the whole checkpoint."
        ) from None


def _unknown(stated: Mapping[str, Any], kind: str) -> list[str]:
    """What is set and does something else than the fields that are honoured."""
    name = CLASSES[kind].__name__.removesuffix("Pil")
    names = {name, name + "Fast", name + "Pil", name.replace("ImageProcessor", "FeatureExtractor")}
    problems = [
        f"{field} is {stated[field]!r}; of a {kind}, {name} can be honoured."
        for field in ("image_processor_type", "feature_extractor_type")
        if stated.get(field, name) not in names
    ]
    others = sorted(key for key in stated if stated[key] and key not in {*HONOURED, *NEUTRAL})
    return problems + [
        f"{field} is {stated[field]!r}, which is not known here. If it changes nothing, remove it; "
        f"honoured are {', '.join(HONOURED)}."
        for field in others
    ]


def _pixels(values: Mapping[str, Any]) -> list[str]:
    problems = []
    try:
        filter_name = Image.Resampling(values["resample"]).name.lower()
    except ValueError:
        filter_name = ""
    if filter_name not in get_args(Resample):
        numbers = ", ".join(f"{Image.Resampling[n.upper()]} ({n})" for n in get_args(Resample))
        problems.append(f"resample is {values['resample']!r}; it can be {numbers}.")
    factor = values["rescale_factor"]
    if values["do_rescale"] and not (isinstance(factor, float | int) and factor > 0):
        problems.append(f"rescale_factor is {factor!r}; it should be a number above 0.")
    for field in ("image_mean", "image_std") if values["do_normalize"] else ():
        channels = _channels(values[field])
        if channels is None or (field == "image_std" and 0 in channels):
            problems.append(f"{field} is {values[field]!r}; it should be a number a channel.")
    return problems


def _framing(values: Mapping[str, Any], image_size: int) -> tuple[int, str, list[str]]:
    """The side of the square, how a picture becomes one, and what is wrong with the fields."""
    size, crop = _shape(values["size"], values), _shape(values["crop_size"], {}, square=True)
    crops = bool(values["do_center_crop"])
    problems = []
    if not values["do_resize"]:
        problems.append("do_resize is false; pictures of any size must be resized.")
    if size is None or size[0] != size[-1]:
        problems.append(
            f"size is {values['size']!r}; it can be a number, a `shortest_edge`, or a `height` and "
            "a `width` that are equal."
        )
    elif size[0] != image_size:
        problems.append(f"size is {values['size']!r}, and the model takes {image_size} pixels.")
    elif not crops and len(size) == 1:
        problems.append(
            "do_center_crop is false, and a `shortest_edge` as size leaves pictures oblong; cut "
            "them, or give a `height` and a `width`."
        )
    elif crops and crop != (size[0], size[0]):
        problems.append(
            f"crop_size is {values['crop_size']!r}, and size {values['size']!r}; pictures are cut "
            "to the square that the short side was resized to, so both must be equal."
        )
    side = size[0] if size else 0
    is_cut = crops and size is not None and len(size) == 1
    return side, "transformers" if is_cut else "stretch", problems


def _shape(
    value: Any, values: Mapping[str, Any], *, square: bool = False
) -> tuple[int, ...] | None:
    """A short side (S,), or height and width (H, W), as transformers reads it; None for others."""
    if isinstance(value, int):
        return (value, value) if square or values.get("default_to_square") else (value,)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping):
        return None
    stated = {name: side for name, side in value.items() if side is not None}
    for names in ({"shortest_edge"}, {"height", "width"}):
        if stated.keys() == names and all(isinstance(side, int) for side in stated.values()):
            return tuple(stated[name] for name in sorted(names))
    return None


def _scale(values: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, of values from 0 to 1. A factor other than 1 / 255 goes
    into them: (f x - m) / s = (x / 255 - m / k) / (s / k), where k = 255 f."""
    factor = 255 * values["rescale_factor"] if values["do_rescale"] else 255.0
    factor = 1.0 if math.isclose(factor, 1.0) else factor
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values["do_normalize"]:
        mean, std = _channels(values["image_mean"]) or mean, _channels(values["image_std"]) or std
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _channels(value: Any) -> tuple[float, float, float] | None:
    """A value for each of three channels, or one for all of them."""
    channels = value if isinstance(value, list | tuple) else [value] * 3
    if len(channels) != 3 or not all(isinstance(item, float | int) for item in channels):
        return None
    red, green, blue = map(float, channels)
    return red, green, blue
