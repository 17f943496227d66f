"""The settings of an export, as flags and a YAML file give them; see configs/."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmrag_batch.bundle import Precision
from mmrag_batch.prompt import Scoring


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The parts of a bundle, and how its generator is asked. What may be left out: defaults.py."""

    ALIASES: ClassVar[Mapping[str, str]] = {"base": "generator"}

    generator: Path
    """What answers, or, as `base`, what the adapter is merged into."""
    out: Path
    encoders: Path | None = None
    """What `mmrag-batch export encoders` takes, the graphs that it wrote, or a bundle with some;
    None: there will be no retriever, for tables without documents."""
    towers: Path | None = None
    """None: those that lie beside the graphs, or else untrained ones, which are the encoders
    alone."""
    adapter: Path | None = None
    """What is merged into the base; None: the generator is bundled as it is."""
    licence: str | None = None
    """Of the generator."""
    trained_on: str | None = None
    scoring: Scoring | None = None
    """This and the next three: how the generator is asked. The adapter, or a generator that is
    bundled as it is, says so itself if `train generator` made it."""
    top_k: int | None = None
    max_images: int | None = None
    max_prompt_tokens: int | None = None
    untested: bool = False
    """Take a generator of an architecture that nobody has tested."""
    notice: str = ""
    """Shown at the start of every run."""
    precision: Precision = "fp32"
    """Of the encoders; graphs keep theirs."""
    vocabulary: Path | None = None
    """ImageBind's list of merges; None: the one beside its weights."""
    sample: Path | None = None
    """A table or pictures to compare the encoders' graphs on; None: drawn ones."""
