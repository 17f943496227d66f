"""Tune a Llama 3.2 Vision generator on a table of questions, with LoRA or in full.

    python -m train.generator train/configs/demo_generator.yaml

Learns to give the right choice from the prompts that `predict` will show: same template, same
evidence from the same retriever, same images and tiles. Writes `adapter/` (PEFT's format) where
`lora_rank` > 0, else `model/` (a whole checkpoint), and the files of `run.py`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import MllamaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.generation.mllama_inputs import load_image_processor
from mmrag_batch.generation.mllama_model import load_model
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.io.images import ImageLoader
from mmrag_batch.prompt import Scoring
from mmrag_batch.records import Row
from mmrag_batch.retrieval.retriever import open_retriever
from mmrag_batch.stages import ImageStore
from train.config import load_config
from train.examples import (
    Collator,
    Examples,
    SameImageCount,
    labelled_rows,
    relevant_evidence,
    weighted_loss,
)
from train.run import Run, log_to_stderr

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Every projection of the text model; the vision tower stays as it is."""


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Settings of one generator training run."""

    base: Path
    """A checkpoint in Hugging Face layout."""
    table: Path
    out: Path
    steps: int
    batch_size: int
    learning_rate: float
    top_k: int
    max_images: int
    scoring: Scoring
    retriever: Path | None = None
    """Graphs that choose the evidence; without them it is the relevant documents, then others."""
    lora_rank: int = 0
    """0 trains every weight."""
    lora_alpha: int = 32
    freeze_vision: bool = False
    """Leave the vision tower as it is; LoRA always does."""
    prompt_loss: float = 0.0
    """Weight of the loss on prompt tokens, beside 1 on the answer."""
    seed: int = 0


class AnswerTrainer(Trainer):
    """transformers' Trainer with our loss and our order of examples."""

    def __init__(self, sampler: Sampler[int], **settings: Any) -> None:
        super().__init__(**settings)
        self._sampler = sampler

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # noqa: ARG002
        return self._sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Any:
        """The weighted loss of `examples.Collator`."""
        labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
        outputs = model(**inputs, use_cache=False)
        loss = weighted_loss(outputs.logits, labels, weights)
        return (loss, outputs) if return_outputs else loss


class _Report(TrainerCallback):
    """Passes the trainer's figures on to the run's folder."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        kept = {key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        if kept:
            self._run.report(step=state.global_step, **kept)


def train_generator(config: GeneratorConfig) -> Path:
    """Train as configured; returns the folder of the adapter or of the model."""
    run = Run(config.out, config, seed=config.seed, inputs=[config.table])
    images = ImageLoader(config.table.parent)
    rows = with_evidence(labelled_rows(config.table), images, config)
    model = trainable(load_model(config.base, dtype=torch.float32), config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.report(rows=len(rows), trained_parameters=trained)

    generation = model.generation_config
    examples = Examples(
        rows,
        Renderer(config.base),
        images,
        max_images=config.max_images,
        scoring=config.scoring,
        seed=config.seed,
    )
    trainer = AnswerTrainer(
        SameImageCount(examples, config.batch_size, config.seed),
        model=model,
        args=_arguments(config),
        train_dataset=examples,
        data_collator=Collator(
            load_image_processor(config.base),
            pad_id=generation.pad_token_id,
            image_token_id=model.config.image_token_index,
            prompt_loss=config.prompt_loss,
        ),
        callbacks=[_Report(run)],
    )
    trainer.train()
    return save(model, config)


def with_evidence(
    rows: Sequence[Row], images: ImageStore, config: GeneratorConfig
) -> Sequence[Row]:
    """The rows with the evidence that the generator is to learn from."""
    if config.retriever is None:
        return relevant_evidence(rows, images, top_k=config.top_k, seed=config.seed)
    retrieve = open_retriever(
        config.retriever,
        read_retriever_spec(config.retriever),
        images,
        top_k=config.top_k,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    return [row for row in retrieve(rows) if row.error is None]


def trainable(model: MllamaForConditionalGeneration, config: GeneratorConfig) -> Any:
    """The model with the weights unfrozen that this run trains."""
    if not config.lora_rank:
        model.model.vision_model.requires_grad_(not config.freeze_vision)
        return model
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=LORA_TARGETS)
    return get_peft_model(model, lora)


def save(model: Any, config: GeneratorConfig) -> Path:
    """Write the adapter, or the whole model with the tokenizer and processor of its base."""
    if config.lora_rank:
        model.save_pretrained(config.out / "adapter")
        return config.out / "adapter"
    return save_model(model, config.base, config.out / "model")


def save_model(model: Any, base: Path, out: Path) -> Path:
    """Write a whole model with the tokenizer, processor and template of its `base`."""
    model.save_pretrained(out)
    for file in base.iterdir():
        if file.suffix in {".json", ".jinja"} and not (out / file.name).exists():
            shutil.copy(file, out)
    return out


def _arguments(config: GeneratorConfig) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(config.out),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, config.steps // 10),
        weight_decay=0.01,
        adam_beta2=0.95,
        bf16=torch.cuda.is_available(),
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def main(config: Annotated[Path, typer.Argument(help="A YAML file, see train/configs.")]) -> None:
    """Train a generator as CONFIG says."""
    log_to_stderr()
    typer.echo(train_generator(load_config(config, GeneratorConfig)))


if __name__ == "__main__":
    typer.run(main)
