"""The settings of what trains, as YAML files give them; see configs/.

Importing this loads nothing heavy, so that a mistake in a file is told at once. Each is declared
once: `--keys` and `mmrag-batch init` show what stands here.
"""

from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.declare import (
    NEEDED,
    NUMBER,
    PATH,
    SWITCH,
    TEXT,
    WHOLE,
    columns_setting,
    setting,
    word,
)
from mmrag_batch.prompt import Scoring
from mmrag_batch.trackers import TrackerName, tracker_setting
from mmrag_batch.train.supervision import SupervisionName

CHECKPOINT = "a folder in Hugging Face layout, hf:owner/name, a bundle, or demo"


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """Settings of one training run of the towers."""

    encoders: Path = setting(
        PATH, NEEDED, "What `export encoders` wrote, or a bundle, or demo for that of the package."
    )
    table: Path = setting(PATH, NEEDED, "A table of questions, with what `supervision` needs.")
    out: Path = setting(
        PATH,
        NEEDED,
        "The folder to write, its model/ among others; the same command goes on in it.",
    )
    epochs: int = setting(WHOLE, NEEDED, "How often each question is seen, at most.")
    batch_size: int = setting(WHOLE, NEEDED, "Questions a step.")
    learning_rate: float = setting(NUMBER, NEEDED, "AdamW's, where it is highest.")
    hidden_size: int = setting(WHOLE, NEEDED, "Width of the towers' hidden layers.")
    columns: str = columns_setting()
    supervision: SupervisionName = setting(
        word(SupervisionName),
        "relevant",
        "What tells which documents help: the column `relevant`; beside it the texts that hold the "
        "right answer; or how likely `generator` finds that answer with each document.",
    )
    generator: Path | None = setting(
        PATH,
        None,
        f"For likelihood, as are the next four: {CHECKPOINT}.",
    )
    scoring: Scoring = setting(word(Scoring), "letter", "How the generator is asked to choose.")
    max_images: int = setting(WHOLE, 2, "Images shown to it a question.")
    max_prompt_tokens: int = setting(WHOLE, 4096, "Its longest prompt.")
    generator_batch: int = setting(WHOLE, 16, "Prompts at once.")
    hard_negatives: int = setting(
        WHOLE,
        0,
        "Documents of other rows that each question is trained against, found anew for every "
        "epoch; with `corpus`, the nearest there, found once. A row's own other documents always "
        "are.",
    )
    corpus: Path | None = setting(
        PATH,
        None,
        "What `index` wrote with the bundle in `encoders`: `relevant` names documents of it, and "
        "rows need none of their own.",
    )
    embedding_cache: Path | None = setting(
        PATH,
        None,
        "A folder that keeps embeddings for other runs, as in `predict`.",
        otherwise="a folder in `out`",
    )
    held_out: float = setting(
        NUMBER,
        0.1,
        "Share of the questions that choose the best epoch: about, as groups that share contents "
        "are whole.",
    )
    held_out_by: str | None = setting(
        TEXT,
        None,
        "A column of the table: questions with the same value there are on one side.",
        otherwise="what shares a question, a picture or a document",
    )
    patience: int = setting(WHOLE, 5, "Epochs without a better one before training stops.")
    report_to: TrackerName = tracker_setting()
    seed: int = setting(WHOLE, 0, "Of weights, order and what is held out.")


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Settings of one generator training run."""

    base: Path = setting(PATH, NEEDED, f"What is tuned: {CHECKPOINT}.")
    table: Path = setting(PATH, NEEDED, "A table of questions with labels.")
    out: Path = setting(
        PATH,
        NEEDED,
        "The folder to write, its adapter/ or model/ among others; the same command goes on in it.",
    )
    steps: int = setting(WHOLE, NEEDED, "Steps of the optimiser.")
    batch_size: int = setting(WHOLE, NEEDED, "Rows at once, on each GPU.")
    learning_rate: float = setting(NUMBER, NEEDED, "AdamW's, where it is highest.")
    top_k: int = setting(WHOLE, NEEDED, "Documents shown a question.")
    max_images: int = setting(WHOLE, NEEDED, "Images shown a question.")
    scoring: Scoring = setting(
        word(Scoring), NEEDED, "How it is asked to choose: by letters, or by the choices' texts."
    )
    columns: str = columns_setting()
    retriever: Path | None = setting(
        PATH,
        None,
        "Graphs that choose the evidence, or a bundle.",
        otherwise="the relevant documents, then others",
    )
    accumulate: int = setting(WHOLE, 1, "Batches a step.")
    max_prompt_tokens: int = setting(
        WHOLE, 4096, "Evidence is cut to fit into it, the lowest ranked first."
    )
    lora_rank: int = setting(WHOLE, 0, "Of the adapter; 0 trains every weight.")
    lora_alpha: int = setting(WHOLE, 32, "The adapter is scaled by this over its rank.")
    four_bits: bool = setting(SWITCH, False, "Keep the base in 4 bits while LoRA learns (QLoRA).")
    gradient_checkpointing: bool = setting(SWITCH, False, "Less memory, a third more time.")
    freeze_vision: bool = setting(
        SWITCH, False, "Leave the vision tower as it is; LoRA always does."
    )
    prompt_loss: float = setting(
        NUMBER, 0.0, "Weight of the loss on prompt tokens, beside 1 on the answer."
    )
    untested: bool = setting(
        SWITCH, False, "Take a base of an architecture that nobody has tested."
    )
    held_out: int = setting(
        WHOLE,
        0,
        "Rows of the table, about, at random, that are scored as `predict` would at each "
        "checkpoint; the checkpoint that is best at them is the result. Groups that share contents "
        "are whole.",
    )
    held_out_by: str | None = setting(
        TEXT,
        None,
        "A column of the table: rows with the same value there are on one side.",
        otherwise="what shares a question, a picture or a document",
    )
    save_every: int = setting(WHOLE, 500, "Steps between checkpoints.")
    report_to: TrackerName = tracker_setting()
    seed: int = setting(WHOLE, 0, "Of the adapter, order and what is held out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSizes:
    """How large small encoders are, and how they are trained."""

    out: Path = setting(PATH, NEEDED, "The folder to write; the encoders are in its model/.")
    steps: int = setting(WHOLE, NEEDED, "Steps of the optimiser.")
    picture_batch: int = setting(WHOLE, NEEDED, "Pictures with a text each, a step.")
    text_batch: int = setting(WHOLE, NEEDED, "Pairs of texts a step.")
    learning_rate: float = setting(NUMBER, NEEDED, "AdamW's, where it is highest.")
    report_to: TrackerName = tracker_setting()
    seed: int = setting(WHOLE, 0, "Of weights and order.")
    image_size: int = setting(WHOLE, 48, "Side in pixels that a picture is resized and cut to.")
    patch_size: int = setting(WHOLE, 8, "Side in pixels of a patch.")
    width: int = setting(WHOLE, 128, "Of both encoders.")
    image_blocks: int = setting(WHOLE, 4, "Layers for pictures.")
    text_blocks: int = setting(WHOLE, 2, "Layers for texts.")
    heads: int = setting(WHOLE, 4, "Of each layer's attention.")
    context_length: int = setting(WHOLE, 40, "Most tokens of a text; the rest is cut off.")
    embedding_size: int = setting(WHOLE, 128, "Dimensions of what they give.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodersConfig(EncoderSizes):
    """Settings of one training run of small encoders on a table."""

    table: Path = setting(PATH, NEEDED, "A table of questions; what it needs: your-own-bundle.md.")
    columns: str = columns_setting()
    vocabulary: int = setting(WHOLE, 800, "Most tokens of the BPE, the 256 bytes included.")
    held_out: float = setting(NUMBER, 0.1, "Share of the pictures that say how well it went.")
    name: str = setting(TEXT, "imagebind-small", "What bundles call these encoders.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEncodersConfig(EncoderSizes):
    """Settings of one training run of the demo encoders."""

    pictures: int = setting(
        WHOLE,
        NEEDED,
        "How many pictures are drawn; they are used again and again, with new captions.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Settings of one training run of a small generator's vision tower on a table."""

    table: Path = setting(PATH, NEEDED, "A table of questions with labels, about pictures.")
    out: Path = setting(PATH, NEEDED, "The folder to write; the generator is in its model/.")
    steps: int = setting(WHOLE, NEEDED, "Steps of the vision tower.")
    batch_size: int = setting(WHOLE, NEEDED, "Questions a step.")
    learning_rate: float = setting(NUMBER, NEEDED, "AdamW's, where it is highest.")
    columns: str = columns_setting()
    language_steps: int = setting(
        WHOLE,
        0,
        "Steps, after those, in which the language model learns to answer the same questions.",
    )
    held_out: float = setting(NUMBER, 0.1, "Share of the pictures that say how well it went.")
    report_to: TrackerName = tracker_setting()
    seed: int = setting(WHOLE, 0, "Of weights, order and what is held out.")
    base: Path | None = setting(
        PATH,
        None,
        f"What learns: {CHECKPOINT}.",
        otherwise="a new one of the sizes below, each by default as in the demo",
    )
    vocabulary: int | None = setting(WHOLE, None, "Most tokens of the BPE.")
    hidden_size: int | None = setting(WHOLE, None, "Width of the language model.")
    layers: int | None = setting(WHOLE, None, "Its layers; the 4th, 9th, ... are cross-attention.")
    heads: int | None = setting(WHOLE, None, "Of each layer's attention.")
    kv_heads: int | None = setting(WHOLE, None, "Heads of keys and values.")
    intermediate_size: int | None = setting(WHOLE, None, "Width inside of each layer.")
    vision_hidden_size: int | None = setting(WHOLE, None, "Width of the vision tower.")
    vision_layers: int | None = setting(WHOLE, None, "Its layers.")
    vision_heads: int | None = setting(WHOLE, None, "Of each of them.")
    image_size: int | None = setting(WHOLE, None, "Side in pixels of a tile.")
    patch_size: int | None = setting(WHOLE, None, "Side in pixels of a patch.")
    tiles: int | None = setting(WHOLE, None, "Most tiles of a picture: 4 or 1.")
    context_length: int | None = setting(WHOLE, None, "Positions of the language model.")
    initializer_range: float | None = setting(
        NUMBER, None, "Standard deviation of its weights at first."
    )


@dataclass(frozen=True, slots=True)
class DemoVisionConfig:
    """Settings of one training run of the demo generator's vision tower."""

    base: Path = setting(PATH, NEEDED, "A generator in Hugging Face layout.")
    out: Path = setting(PATH, NEEDED, "The folder to write; the generator is in its model/.")
    steps: int = setting(WHOLE, NEEDED, "Steps of the optimiser.")
    batch_size: int = setting(WHOLE, NEEDED, "Pictures a step.")
    learning_rate: float = setting(NUMBER, NEEDED, "AdamW's, where it is highest.")
    pictures: int = setting(
        WHOLE, NEEDED, "How many pictures are drawn; they are used again and again."
    )
    report_to: TrackerName = tracker_setting()
    seed: int = setting(WHOLE, 0, "Of pictures and order.")
