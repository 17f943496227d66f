"""Tune a generator on a table of questions, with LoRA or in full.

    mmrag-batch train generator train/configs/demo_generator.yaml

Learns to give the right choice, or the text of `label` where a row has no choices, from the prompts
that `predict` will show: same template, same evidence from the same retriever, same images and
tiles. Writes `adapter/` (PEFT's format) where
`lora_rank` > 0, else `model/` (a whole checkpoint), and the files of `run.py`. Start a run that was
killed again, and it goes on from its last checkpoint. On four GPUs:

    torchrun --nproc-per-node 4 -m mmrag_batch train generator CONFIG
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from mmrag_batch.bundle import hash_files, write_prompt_settings
from mmrag_batch.errors import ConfigError, InputError, UnavailableError
from mmrag_batch.families.family import check_tested, open_family, template_version
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.hub.names import shown
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import row_with_pages
from mmrag_batch.machine import install
from mmrag_batch.parts import find_part, hash_model, read_spec, write_origin
from mmrag_batch.progress import Progress
from mmrag_batch.prompt import PromptSpec
from mmrag_batch.records import Row
from mmrag_batch.retrieval.retriever import open_retriever
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import parse_names
from mmrag_batch.train.answer_trainer import AnswerTrainer
from mmrag_batch.train.checkpoints import last_checkpoint
from mmrag_batch.train.examples import (
    Collator,
    Examples,
    SameImageCount,
    fitting_rows,
    labelled_rows,
    relevant_evidence,
)
from mmrag_batch.train.held_out import Scorer
from mmrag_batch.train.inputs import hash_table, inside
from mmrag_batch.train.run import Run, check_same
from mmrag_batch.train.settings import GeneratorConfig
from mmrag_batch.train.splits import (
    check_column,
    hold_out,
    hold_out_by,
    question_contents,
    read_column,
)
from mmrag_batch.train.tuning import add_lora, freeze, load_base, processes, save_model

log = logging.getLogger(__name__)


def train_generator(config: GeneratorConfig) -> Path:
    """Train as configured; returns the folder of the adapter or of the model.

    Goes on from the last checkpoint of a run with the same settings and inputs. Raises ConfigError
    for settings that exclude each other and for a folder that holds another run's checkpoints.
    """
    _check(config)
    config = with_parts(config)
    checkpoints = config.out / "checkpoints"
    checkpoint = last_checkpoint(checkpoints)
    state = processes()
    base_files: dict[str, str] = {}
    inputs: dict[str, str] = {}
    if state.is_main_process:  # the others need not read it all as well
        base_files = hash_model(config.base)
        inputs = hash_table(config.table, parse_names(config.columns)) | inside(
            config.base, base_files
        )
        if config.retriever is not None:
            inputs |= inside(config.retriever, hash_files(config.retriever))
        if checkpoint:
            check_same(config.out, config, inputs, unfinished=checkpoints)
    run = Run(
        config.out,
        config,
        seed=config.seed,
        inputs=inputs,
        resumed=checkpoint is not None,
        main=state.is_main_process,
        report_to=config.report_to,
    )
    if checkpoint:
        log.info("Going on from %s.", checkpoint)
    trainer = build_trainer(config, checkpoints, run)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    out = config.out / ("adapter" if config.lora_rank else "model")
    if state.is_main_process:
        save(trainer.accelerator.unwrap_model(trainer.model), config, out)
        if config.lora_rank:
            write_origin(out, base={"path": shown(config.base), "files": base_files})
        shutil.rmtree(checkpoints, ignore_errors=True)
    run.close()
    state.wait_for_everyone()
    return out


def with_parts(config: GeneratorConfig) -> GeneratorConfig:
    """The config with the folders of the parts that it names of a bundle."""
    base = find_part(config.base, "generator")
    check_tested(base, untested=config.untested)
    return replace(
        config,
        base=base,
        retriever=config.retriever and find_part(config.retriever, "retriever"),
    )


def plan_generator(config: GeneratorConfig) -> str:
    """What a run would learn from, in a sentence. Raises what can be raised before anything is
    loaded or written."""
    _check(config)
    config = with_parts(config)
    total = len(_labelled(config))
    if config.held_out >= total:
        raise _too_many_held_out(config, total)
    if config.retriever is not None:
        read_spec(config.retriever)
    return (
        f"{config.table}: {total} rows with a label, of which about {config.held_out} are held "
        f"out; {config.steps} steps of {config.batch_size * config.accumulate} rows. Nothing was "
        "written."
    )


def _labelled(config: GeneratorConfig) -> list[Row]:
    return labelled_rows(config.table, parse_names(config.columns))


def build_trainer(config: GeneratorConfig, checkpoints: Path, run: Run) -> AnswerTrainer:
    """The trainer of a run, with its rows, their evidence, and the model."""
    images, renderer = ImageLoader(config.table.parent), Renderer(config.base)
    template = template_version(config.base)
    spec = PromptSpec(config.max_images, config.max_prompt_tokens, config.scoring, template)
    evidence_rows = with_evidence(_labelled(config), images, config)
    rows, held_out = split_rows(fitting_rows(evidence_rows, renderer, images, spec), images, config)
    examples = Examples(rows, renderer, images, spec, seed=config.seed)
    model = trainable(config)
    trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.report(
        rows=len(rows),
        held_out=len(held_out),
        trained_parameters=trained_parameters,
        processes=processes().num_processes,
    )
    scorer = Scorer(config.base, images, spec, batch_size=config.batch_size)
    return AnswerTrainer(
        sampler=SameImageCount(examples, config.batch_size, config.seed),
        score=scorer.score,
        run=run,
        base=config.base,
        model=model,
        args=_arguments(config, checkpoints),
        train_dataset=examples,
        eval_dataset=held_out or None,
        data_collator=Collator(
            open_family(config.base),
            pad_id=model.generation_config.pad_token_id,
            prompt_loss=config.prompt_loss,
        ),
    )


def with_evidence(
    rows: Sequence[Row], images: ImageStore, config: GeneratorConfig
) -> Sequence[Row]:
    """The rows with the evidence that the generator is to learn from; a PDF is its pages."""
    if config.retriever is None:
        with Progress("Reading pictures", len(rows), "rows") as progress:
            read_rows = (row_with_pages(row, images) for row in progress.each(rows))
            return relevant_evidence(read_rows, images, top_k=config.top_k, seed=config.seed)
    retriever = open_retriever(
        config.retriever,
        read_spec(config.retriever),
        images,
        top_k=config.top_k,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    with Progress("Finding evidence", len(rows), "rows") as progress:
        read_rows = (row_with_pages(row, images) for row in progress.each(rows))
        return [row for row in retriever(read_rows) if row.error is None]


def split_rows(
    rows: Sequence[Row], images: ImageStore, config: GeneratorConfig
) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and rows to hold out, both in their order. Raises InputError."""
    if not config.held_out:
        return list(rows), []
    if config.held_out >= len(rows):
        raise _too_many_held_out(config, len(rows))
    if config.held_out_by is None:
        asked = [question_contents(row.question, images) for row in rows if row.question]
        chosen = hold_out(asked, config.held_out, config.seed)
    else:
        column = read_column(config.table, config.held_out_by, parse_names(config.columns)).at(
            row.number for row in rows
        )
        chosen = hold_out_by(column, config.held_out, config.seed)
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [row for index, row in enumerate(rows) if index in chosen],
    )


def _too_many_held_out(config: GeneratorConfig, total: int) -> InputError:
    return InputError(
        f"{config.table}: held_out is {config.held_out}, and {total} rows can be used; hold fewer "
        "out, or give more rows."
    )


def trainable(config: GeneratorConfig) -> Any:
    """The base with the weights unfrozen, or added, that this run trains."""
    family = open_family(config.base)
    with Progress(f"Loading {config.base}"):
        model = load_base(family, lora=bool(config.lora_rank), four_bits=config.four_bits)
    if config.lora_rank or config.freeze_vision:
        freeze(model.get_encoder(modality="image"))
    if config.lora_rank:
        return add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha)
    return model


def save(model: Any, config: GeneratorConfig, out: Path) -> None:
    """Write the adapter, or the whole model with the tokenizer and processor of its base."""
    if config.lora_rank:
        model.save_pretrained(out)
    else:
        save_model(model, config.base, out)
    write_prompt_settings(out, config, template_version(config.base))


def _check(config: GeneratorConfig) -> None:
    if config.four_bits and not config.lora_rank:
        raise ConfigError("four_bits: weights in 4 bits cannot learn; set lora_rank to train LoRA.")
    if config.four_bits and find_spec("bitsandbytes") is None:
        raise UnavailableError(f"bitsandbytes is not installed. Run `{install('train-4bit')}`.")
    if config.held_out_by is not None:
        if not config.held_out:
            raise ConfigError("held_out_by: nothing is held out; say how many rows in `held_out`.")
        check_column(config.table, config.held_out_by, parse_names(config.columns))


def _arguments(config: GeneratorConfig, checkpoints: Path) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, config.steps // 10),
        weight_decay=0.01,
        adam_beta2=0.95,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        disable_tqdm=True,  # the run reports
        logging_steps=min(50, max(1, config.steps // 20)),
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=1,
        eval_strategy="steps" if config.held_out else "no",
        eval_steps=config.save_every,
        eval_on_start=bool(config.held_out),
        load_best_model_at_end=bool(config.held_out),
        metric_for_best_model="eval_loss" if config.held_out else None,
        report_to="none",  # the run sends them on
        remove_unused_columns=False,
        seed=config.seed,
        data_seed=config.seed,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=2 if on_gpu else 0,
        ddp_find_unused_parameters=True,  # cross-attention, in a batch without images
    )
