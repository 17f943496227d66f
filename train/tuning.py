"""The model that a run tunes: its base, in 32, 16 or 4 bits, and the weights of it that learn."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from mmrag_batch.families.family import Family

KEPT_IN_FULL = [
    "lm_head",
    *(
        f"model.{name}"
        for name in ("vision_model", "vision_tower", "visual", "connector", "multi_modal_projector")
    ),
]
"""What a model sees and answers with, as families call it: not quantised when the rest is."""


def processes() -> PartialState:
    """This process among those that train together: on GPUs where there are any, else on cores."""
    return PartialState(cpu=not torch.cuda.is_available())


def load_base(family: Family, *, lora: bool, four_bits: bool) -> Any:
    """The model to tune.

    A base that LoRA leaves as it is needs no more than bfloat16 on a GPU; in 4 bits it is
    quantised as it is loaded (NF4 with quantised constants, Dettmers 2023). The rest is float32.
    """
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu and lora else torch.float32
    if not four_bits:
        return family.load(dtype=dtype)
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=KEPT_IN_FULL,
    )
    model = family.load(dtype=dtype, quantization=quantization, device=processes().device)
    keep_gradients(model)
    return model


def keep_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights when a model is scored on a CPU.

    With AVX-512 BF16 it does so in eval mode, for good, and the kernel for repacked weights passes
    no gradient on (bitsandbytes 0.50): what is trained after scoring would hardly learn.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def freeze(module: nn.Module) -> None:
    """Run a module without a graph from now on.

    That none of its weights learns is not enough: where layers are checkpointed, transformers has
    the output of every embedding ask for gradients, that of image patches too, and the vision tower
    of the 11B keeps 9 GB an image for a way back that nobody goes.
    """
    module.requires_grad_(False)
    module.forward = torch.no_grad()(module.forward)


def add_lora(model: Any, *, rank: int, alpha: int) -> Any:
    """The model with a new adapter, in float32, on every linear layer of its decoder."""
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=decoder_layers(model))
    )


def decoder_layers(model: Any) -> list[str]:
    """The names of the linear layers that read and write text; the head is not among them."""
    layers = {id(one) for one in model.get_decoder().modules() if isinstance(one, nn.Linear)}
    return [name for name, one in model.named_modules() if id(one) in layers]


def save_model(model: Any, base: Path, out: Path) -> Path:
    """Write a whole model with the tokenizer, processor and template of its `base`. Weights that
    were there before are left to the bundles that they are linked into."""
    for before in out.glob("*.safetensors"):
        before.unlink()
    model.save_pretrained(out)
    for file in base.iterdir():
        is_companion = file.suffix in {".json", ".jinja"} and not file.name.endswith(".index.json")
        if is_companion and not (out / file.name).exists():
            shutil.copy(file, out)
    return out
