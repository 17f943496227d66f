"""The settings of an export, as a YAML file gives them; see configs/."""

from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.bundle import Precision
from mmrag_batch.prompt import Scoring


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The parts of a bundle, and how its generator was trained to be asked."""

    encoders: Path
    """What `mmrag-batch export encoders` takes, or the graphs that it wrote."""
    towers: Path
    base: Path
    """The generator that was tuned."""
    out: Path
    licence: str
    """Of the generator."""
    trained_on: str
    adapter: Path | None = None
    """What is merged into the base; None: the base is bundled as it is."""
    scoring: Scoring | None = None
    """This and the next three: how the generator was tuned to be asked. The adapter, or a base that
    is bundled as it is, says so itself if `train generator` made it."""
    top_k: int | None = None
    max_images: int | None = None
    max_prompt_tokens: int | None = None
    notice: str = ""
    """Shown at the start of every run."""
    precision: Precision = "fp32"
    """Of the encoders; graphs keep theirs."""
    vocabulary: Path | None = None
    """ImageBind's list of merges; None: the one beside its weights."""
    sample: Path | None = None
    """A table or pictures to compare the encoders' graphs on; None: drawn ones."""
