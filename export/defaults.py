"""What a manifest says where no setting does: what the generator was tuned with, what the bundle
says that a part is taken from, or else a default."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrag_batch.bundle import PROMPT_FIELDS, GeneratorSpec, read_prompt_settings
from mmrag_batch.errors import ConfigError
from mmrag_batch.export.card import licence_of
from mmrag_batch.export.settings import ExportConfig
from mmrag_batch.families.family import (
    FAMILIES,
    open_family,
    read_architecture,
    template_version,
)
from mmrag_batch.generation.engines.vllm_limits import ANSWER_TOKENS
from mmrag_batch.parts import find_manifest

DEFAULTS: Mapping[str, object] = {"scoring": "letter", "top_k": 3, "max_images": 4}
"""As many images as a question has with an image of its own and a picture from each document."""
MAX_PROMPT_TOKENS = 8192
"""Where a model has positions for more: what a prompt may take is memory that a GPU sets aside."""
NOTHING, NOT_SAID = "nothing here", "not said"
"""What a bundle was trained on, where that is known, and where it is not."""
UNTESTED = (
    "Nobody has tested a generator of this architecture; `mmrag-batch doctor --bundle` compares "
    "the engines."
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a manifest says beside its files. `defaults` are the values that nobody has said."""

    generator: GeneratorSpec
    template_version: int
    trained_on: str
    notice: str
    defaults: Mapping[str, object]


def describe(config: ExportConfig) -> Description:
    """What the manifest of a bundle of these parts, given as folders, will say.

    Raises ConfigError where the config asks a generator otherwise than it was tuned to be asked.
    """
    tuned = read_prompt_settings(config.adapter or config.generator)
    _check_tuned(config, tuned)
    base = find_manifest(config.generator)
    bundles = [base] if base is not None else []
    if config.encoders is not None and (manifest := find_manifest(config.encoders)) is not None:
        bundles.append(manifest)
    values: dict[str, Any] = {}
    defaults: dict[str, object] = {}
    for name in (*PROMPT_FIELDS, "licence"):
        values[name] = tuned.get(name, base and getattr(base.generator, name))
        if (given := getattr(config, name)) not in (None, ""):
            values[name] = given
        if values[name] is None:
            values[name] = defaults[name] = _default(name, config.generator)
    trained_on = config.trained_on
    if trained_on is None:
        said = dict.fromkeys(bundle.trained_on for bundle in bundles)
        is_trained = bool(config.towers or config.adapter or tuned)
        trained_on = "; ".join(said) or (NOT_SAID if is_trained else NOTHING)
        defaults["trained_on"] = trained_on
    notices = dict.fromkeys(bundle.notice for bundle in bundles if bundle.notice)
    notice = config.notice or " ".join(notices)
    if config.untested and read_architecture(config.generator) not in FAMILIES:
        notice = f"{notice.removesuffix(UNTESTED)} {UNTESTED}".strip()
    template = template_version(config.generator, config.adapter)
    return Description(GeneratorSpec(**values), template, trained_on, notice, defaults)


def _check_tuned(config: ExportConfig, tuned: Mapping[str, object]) -> None:
    source = config.adapter or config.generator
    problems = [
        f"{name} is {given}, and {source} was tuned with {tuned[name]}. Leave it out."
        for name in PROMPT_FIELDS
        if (given := getattr(config, name)) not in (None, tuned.get(name, given))
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _default(name: str, generator: Path) -> object:
    if name == "licence":
        return licence_of(generator) or "unknown"
    if name == "max_prompt_tokens":
        longest = open_family(generator).shape("bfloat16").longest
        return min(MAX_PROMPT_TOKENS, max(longest - ANSWER_TOKENS, longest // 2))
    return DEFAULTS[name]
