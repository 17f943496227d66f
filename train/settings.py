"""The settings of what trains, as YAML files give them; see configs/.

Importing this loads nothing heavy, so that a mistake in a file is told at once.
"""

from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.prompt import Scoring
from mmrag_batch.settings import columns_setting
from mmrag_batch.trackers import TrackerName, tracker_setting
from mmrag_batch.train.supervision import SupervisionName


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """Settings of one training run of the towers."""

    encoders: Path
    """A folder of exported encoders."""
    table: Path
    out: Path
    epochs: int
    batch_size: int
    """Questions a step."""
    learning_rate: float
    hidden_size: int
    columns: str = columns_setting()
    supervision: SupervisionName = "relevant"
    generator: Path | None = None
    """For `likelihood`: a checkpoint in Hugging Face layout, and how it is asked."""
    scoring: Scoring = "letter"
    max_images: int = 2
    max_prompt_tokens: int = 4096
    generator_batch: int = 16
    """Prompts at once."""
    hard_negatives: int = 0
    """Documents of other rows that each question is trained against, found anew for every epoch. A
    row's own other documents always are."""
    embedding_cache: Path | None = None
    """As in `predict`; default: a folder in `out`."""
    held_out: float = 0.1
    """Share of the questions that choose the best epoch: about, as groups that share contents are
    whole."""
    held_out_by: str | None = None
    """A column of the table: questions with the same value there are on one side."""
    patience: int = 5
    """Epochs without a better one before training stops."""
    report_to: TrackerName = tracker_setting()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Settings of one generator training run."""

    base: Path
    """A checkpoint in Hugging Face layout."""
    table: Path
    out: Path
    steps: int
    batch_size: int
    """Rows at once, on each GPU."""
    learning_rate: float
    top_k: int
    max_images: int
    scoring: Scoring
    columns: str = columns_setting()
    retriever: Path | None = None
    """Graphs that choose the evidence; without them it is the relevant documents, then others."""
    accumulate: int = 1
    """Batches a step."""
    max_prompt_tokens: int = 4096
    """Evidence is cut to fit into it, the lowest ranked first."""
    lora_rank: int = 0
    """0 trains every weight."""
    lora_alpha: int = 32
    four_bits: bool = False
    """Keep the base in 4 bits while LoRA learns (QLoRA)."""
    gradient_checkpointing: bool = False
    """Less memory, a third more time."""
    freeze_vision: bool = False
    """Leave the vision tower as it is; LoRA always does."""
    prompt_loss: float = 0.0
    """Weight of the loss on prompt tokens, beside 1 on the answer."""
    untested: bool = False
    """Take a base of an architecture that nobody has tested."""
    held_out: int = 0
    """Rows of the table, about, at random, that are scored as `predict` would at each checkpoint;
    the checkpoint that is best at them is the result. Groups that share contents are whole."""
    held_out_by: str | None = None
    """A column of the table: rows with the same value there are on one side."""
    save_every: int = 500
    """Steps between checkpoints."""
    report_to: TrackerName = tracker_setting()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSizes:
    """How large small encoders are, and how they are trained."""

    out: Path
    steps: int
    picture_batch: int
    """Pictures with a text each, a step."""
    text_batch: int
    """Pairs of texts a step."""
    learning_rate: float
    report_to: TrackerName = tracker_setting()
    seed: int = 0
    image_size: int = 48
    """Side in pixels that a picture is resized and cut to."""
    patch_size: int = 8
    width: int = 128
    image_blocks: int = 4
    text_blocks: int = 2
    heads: int = 4
    context_length: int = 40
    """Most tokens of a text; the rest is cut off."""
    embedding_size: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodersConfig(EncoderSizes):
    """Settings of one training run of small encoders on a table."""

    table: Path
    columns: str = columns_setting()
    vocabulary: int = 800
    """Most tokens of the BPE, the 256 bytes included."""
    held_out: float = 0.1
    """Share of the pictures that say how well it went."""
    name: str = "imagebind-small"
    """What bundles call these encoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEncodersConfig(EncoderSizes):
    """Settings of one training run of the demo encoders."""

    pictures: int
    """How many pictures are drawn; they are used again and again, with new captions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Settings of one training run of a small generator's vision tower on a table."""

    table: Path
    out: Path
    steps: int
    batch_size: int
    learning_rate: float
    columns: str = columns_setting()
    language_steps: int = 0
    """Steps, after those, in which the language model learns to answer the same questions."""
    held_out: float = 0.1
    """Share of the pictures that say how well it went."""
    report_to: TrackerName = tracker_setting()
    seed: int = 0
    base: Path | None = None
    """A generator in Hugging Face layout; without one, a new one of the sizes below."""
    vocabulary: int | None = None
    """Each size as in `train.mllama.GeneratorSizes`, whose defaults are those of the demo's."""
    hidden_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    intermediate_size: int | None = None
    vision_hidden_size: int | None = None
    vision_layers: int | None = None
    vision_heads: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    tiles: int | None = None
    context_length: int | None = None
    initializer_range: float | None = None


@dataclass(frozen=True, slots=True)
class DemoVisionConfig:
    """Settings of one training run of the demo generator's vision tower."""

    base: Path
    """A generator in Hugging Face layout."""
    out: Path
    steps: int
    batch_size: int
    learning_rate: float
    pictures: int
    """How many pictures are drawn; they are used again and again."""
    report_to: TrackerName = tracker_setting()
    seed: int = 0
