"""The settings of an export, as flags and a YAML file give them; see configs/."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmrag_batch.bundle import Precision
from mmrag_batch.declare import NEEDED, PATH, SWITCH, TEXT, WHOLE, setting, word
from mmrag_batch.prompt import Scoring


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The parts of a bundle, and how its generator is asked. What may be left out: defaults.py."""

    ALIASES: ClassVar[Mapping[str, str]] = {"base": "generator"}

    generator: Path = setting(
        PATH,
        NEEDED,
        "What answers, or, as `base`, what the adapter is merged into: a folder in Hugging Face "
        "layout, hf:owner/name, a bundle, or demo.",
    )
    out: Path = setting(PATH, NEEDED, "The bundle to write.")
    encoders: Path | None = setting(
        PATH,
        None,
        "What `export encoders` takes, the graphs that it wrote, a bundle with some, or demo.",
        otherwise="no retriever, for tables without documents",
    )
    towers: Path | None = setting(
        PATH,
        None,
        "Trained towers.",
        otherwise="those beside the graphs, or untrained ones, which are the encoders alone",
    )
    adapter: Path | None = setting(
        PATH,
        None,
        "A LoRA adapter, which is merged into the base.",
        otherwise="the generator is bundled as it is",
    )
    licence: str | None = setting(
        TEXT, None, "Of the generator.", otherwise="as its model card or a bundle says"
    )
    trained_on: str | None = setting(
        TEXT, None, "For the manifest.", otherwise="what the bundles say that parts come from"
    )
    scoring: Scoring | None = setting(
        word(Scoring),
        None,
        "How the generator is asked to choose.",
        otherwise="as it was tuned here, or as the bundle says that it comes from, else letter",
    )
    top_k: int | None = setting(
        WHOLE, None, "Documents kept a question.", otherwise="likewise, else 3"
    )
    max_images: int | None = setting(
        WHOLE, None, "Images shown a question.", otherwise="likewise, else 4"
    )
    max_prompt_tokens: int | None = setting(
        WHOLE, None, "Longest prompt.", otherwise="likewise, else 8192, or what the model has"
    )
    untested: bool = setting(
        SWITCH, False, "Take a generator of an architecture that nobody has tested."
    )
    notice: str = setting(TEXT, "", "Shown at the start of every run.")
    precision: Precision = setting(
        word(Precision),
        "fp32",
        "Of the encoders; graphs keep theirs. fp16 is for CUDA, int8 for CPUs with VNNI.",
    )
    vocabulary: Path | None = setting(
        PATH, None, "ImageBind's list of merges.", otherwise="the one beside its weights"
    )
    sample: Path | None = setting(
        PATH,
        None,
        "A table or a folder of pictures to compare the encoders' graphs on.",
        otherwise="drawn ones",
    )
