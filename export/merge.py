"""A LoRA adapter merged into its base: a checkpoint that any engine serves without peft."""

import json
import re
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from transformers import MllamaForConditionalGeneration

from mmrag_batch.bundle import PICKLES
from mmrag_batch.errors import ConfigError, DeniedError, MissingError
from mmrag_batch.generation.mllama_inputs import collate, load_image_processor
from mmrag_batch.generation.mllama_model import load_model
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.prompt import build_prompt
from mmrag_batch.records import Question

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOLERANCE = 1e-4
"""Largest difference of a logit between the merged model and adapter + base, in float32."""
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
LORA = re.compile(r"\.lora_(embedding_)?[AB](\.weight)?$")

Weights = dict[str, torch.Tensor]


def merge_adapter(base_dir: Path, adapter_dir: Path, out_dir: Path) -> float:
    """Write base + adapter to `out_dir` in Hugging Face layout, in float32.

    Returns the largest difference of a logit between what was written and adapter + base, on a
    prompt with an image. Raises MissingError and DeniedError for files that are not there or are
    pickles, ConfigError for an adapter that changes nothing, or other weights than its own.
    """
    targets = _target_weights(adapter_dir)
    base = load_model(base_dir, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, str(adapter_dir)).eval()
    expected = _sample_logits(adapted, base_dir)
    merged: MllamaForConditionalGeneration = adapted.merge_and_unload(safe_merge=True)
    check_changes(before, dict(merged.state_dict()), targets)

    out_dir.mkdir(parents=True, exist_ok=True)
    merged.save_pretrained(out_dir)
    for name in COMPANIONS:
        _copy(base_dir / name, out_dir / name)
    for file in out_dir.glob("*.safetensors"):  # written for their owner's eyes only
        shutil.copymode(out_dir / "config.json", file)
    written = _sample_logits(load_model(out_dir, dtype=torch.float32), out_dir)
    difference = float((written - expected).abs().max())
    if not difference <= TOLERANCE:  # catches nan, too
        raise ConfigError(
            f"Merging {adapter_dir} changed a logit by {difference:.2e} (at most {TOLERANCE:.0e})."
        )
    return difference


def check_changes(before: Weights, after: Weights, targets: set[str]) -> None:
    """Check that merging changed every weight that the adapter aims at, and no other.

    Raises ConfigError naming the first weights that are not so.
    """
    unknown = sorted(targets - before.keys())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    untouched = sorted(targets & before.keys() - changed)
    if not changed:
        raise ConfigError("The adapter changes nothing; was it trained?")
    for problem, names in [
        ("aims at weights that the base does not have", unknown),
        ("left weights unchanged that it aims at", untouched),
        ("changed weights that it does not aim at", sorted(changed - targets)),
    ]:
        if names:
            raise ConfigError(f"The adapter {problem}: {', '.join(names[:3])} ({len(names)}).")


def _target_weights(adapter_dir: Path) -> set[str]:
    """The base's names of the weights that an adapter in peft's format changes."""
    if any(file.suffix in PICKLES for file in adapter_dir.glob("adapter_model.*")):
        raise DeniedError(f"{adapter_dir} holds a pickle; save the adapter as safetensors.")
    file = adapter_dir / ADAPTER_WEIGHTS
    if not file.is_file() or not (adapter_dir / "adapter_config.json").is_file():
        raise MissingError(f"{adapter_dir} holds no adapter; train one with train/generator.py.")
    with safe_open(file, framework="pt") as weights:
        names = [name.removeprefix("base_model.model.") for name in weights.keys()]  # noqa: SIM118
    return {LORA.sub(".weight", name) for name in names}


@torch.inference_mode()
def _sample_logits(model: torch.nn.Module, generator_dir: Path) -> torch.Tensor:
    """The logits (1, L, V) of a choice question about a picture."""
    question = Question(
        text="What is shown?",
        image="sample",
        choices=("a square", "a gradient"),
        documents=(),
        label=None,
        relevant=None,
    )
    picture = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
    token_ids = Renderer(generator_dir).render(
        build_prompt(question, (), max_images=1, scoring="letter").messages
    )
    config = json.loads((generator_dir / "config.json").read_text(encoding="utf-8"))
    inputs = collate(
        [token_ids],
        [[picture]],
        load_image_processor(generator_dir),
        pad_id=0,  # one row is not padded
        image_token_id=config["image_token_index"],
    )
    logits: torch.Tensor = model(**inputs).logits
    return logits


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise MissingError(f"{source} is missing; a generator needs it.")
    shutil.copyfile(source, target)
