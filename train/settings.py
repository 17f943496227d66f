"""The settings of what trains, as YAML files give them; see configs/.

Importing this loads nothing heavy, so that a mistake in a file is told at once.
"""

from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.prompt import Scoring
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
    held_out: int = 0
    """Rows of the table, about, at random, that are scored as `predict` would at each checkpoint;
    the checkpoint that is best at them is the result. Groups that share contents are whole."""
    held_out_by: str | None = None
    """A column of the table: rows with the same value there are on one side."""
    save_every: int = 500
    """Steps between checkpoints."""
    report_to: str = "none"
    """Where figures go besides `metrics.jsonl`: tensorboard, wandb, ..."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EncodersConfig:
    """Settings of one training run of the demo encoders."""

    out: Path
    steps: int
    picture_batch: int
    """Pictures with captions a step."""
    text_batch: int
    """Pairs of paraphrases a step."""
    learning_rate: float
    pictures: int
    """How many pictures are drawn; they are used again and again, with new captions."""
    seed: int = 0
    image_size: int = 48
    patch_size: int = 8
    width: int = 128
    image_blocks: int = 4
    text_blocks: int = 2
    heads: int = 4
    context_length: int = 40
    embedding_size: int = 128


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Settings of one training run of the demo generator's vision tower."""

    base: Path
    """A generator in Hugging Face layout."""
    out: Path
    steps: int
    batch_size: int
    learning_rate: float
    pictures: int
    """How many pictures are drawn; they are used again and again."""
    seed: int = 0
