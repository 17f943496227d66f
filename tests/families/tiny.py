"""Small checkpoints of the families that are run by their own processors: random weights, and the
processors, tokens, templates and file layout that the published ones have."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

PAD = "<|pad|>"
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VIDEO = "<|video_pad|>"
THINK = ("<think>", "</think>", "<tool_call>")
"""Added without being marked special, as Qwen3 does."""
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message["role"] }}
{% if message["content"] is string %}{{ message["content"] }}{% else %}
{%- for part in message["content"] %}
{{- "IMAGE" if part["type"] == "image" else part["text"] }}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # so that answers differ
    "pad_token_id": 0,
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
QWEN_EYE = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 4,
    "initializer_range": 0.2,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}


@dataclass(frozen=True, slots=True)
class Tiny:
    """One family: what of it is special. `config` gets the id of a token by its text."""

    config: Callable[[Mapping[str, int]], dict[str, Any]]
    image_processor: dict[str, Any]
    template: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    eos: str = "<|im_end|>"
    processor: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """What tokenizer_config.json says beside."""
    published: tuple[str, str] | None = None
    """What transformers 5 calls the vision tower when it saves one, and what is published."""


def build(
    name: str, directory: Path, *, seed: int = 0, sizes: Mapping[str, Mapping[str, Any]] = {}
) -> Path:
    """Write a checkpoint of a family, with other `sizes` in a part of its config."""
    tiny = FAMILIES[name] if name in FAMILIES else UNTESTED[name]
    tokenizer = _tokenizer(tiny)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    settings = tiny.config(ids)
    for half, values in sizes.items():
        settings[half] |= values
    for part in (settings, settings["text_config"]):
        part["vocab_size"] = len(ids)
        part["eos_token_id"], part["pad_token_id"], part["bos_token_id"] = ids[tiny.eos], 0, None
    config = AutoConfig.for_model(name, **settings)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ids[tiny.eos], pad_token_id=0
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    if tiny.published:
        _rename(directory / "model.safetensors", tiny.published)
    tokenizer.save(str(directory / "tokenizer.json"))
    said = {"eos_token": tiny.eos, "pad_token": PAD, "tokenizer_class": "PreTrainedTokenizerFast"}
    write(directory / "tokenizer_config.json", said | tiny.tokenizer)
    (directory / "chat_template.jinja").write_text(tiny.template)
    write(directory / "preprocessor_config.json", tiny.image_processor)
    if tiny.processor:
        write(directory / "processor_config.json", tiny.processor)
    return directory


def _rename(weights: Path, names: tuple[str, str]) -> None:
    tensors = load_file(weights)
    save_file({name.replace(*names): tensor for name, tensor in tensors.items()}, weights)


def write(file: Path, values: Mapping[str, Any]) -> None:
    """As JSON."""
    file.write_text(json.dumps(values, indent=2))


def _tokenizer(tiny: Tiny) -> Tokenizer:
    """A token for each byte, and the added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab={PAD: 0, **vocabulary}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, *tiny.special]
    tokenizer.add_special_tokens([AddedToken(one, normalized=False) for one in special])
    tokenizer.add_tokens([AddedToken(one, normalized=False) for one in tiny.plain])
    return tokenizer


def _idefics3(ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<image>"],
        "scale_factor": 2,
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {**EYE, "image_size": 32, "patch_size": 8},
    }


def _idefics2(ids: Mapping[str, int]) -> dict[str, Any]:
    resampler = {
        "hidden_size": 64,
        "resampler_n_latents": 4,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 32,
        "num_key_value_heads": 1,
    }
    return {
        "image_token_id": ids["<image>"],
        "perceiver_config": resampler,
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {**EYE, "image_size": 32, "patch_size": 8},
    }


def _qwen2_5(ids: Mapping[str, int]) -> dict[str, Any]:
    eye = {**QWEN_EYE, "window_size": 16, "fullatt_block_indexes": [1]}
    return _qwen(ids, eye, {"rope_parameters": ROPE})


def _qwen3(ids: Mapping[str, int]) -> dict[str, Any]:
    eye = {**QWEN_EYE, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return _qwen(ids, eye, {"rope_parameters": {**ROPE, "mrope_interleaved": True}})


def _qwen(
    ids: Mapping[str, int], eye: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, Any]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = ("<|image_pad|>", VIDEO, "<|vision_start|>", "<|vision_end|>")
    return {
        **{name: ids[token] for name, token in zip(names, tokens)},
        "text_config": {**TEXT, **text},
        "vision_config": dict(eye),
    }


def _internvl(ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<IMG_CONTEXT>"],
        "image_seq_length": 4,
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {**EYE, "image_size": [32, 32], "patch_size": [8, 8]},
    }


def _mistral3(ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "image_token_index": ids["[IMG]"],
        "spatial_merge_size": 2,
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {"model_type": "pixtral", **EYE, "image_size": 64, "patch_size": 4},
    }


def _llava_onevision(ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]],
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
            **EYE,
            "image_size": 32,
            "patch_size": 8,
        },
    }


def _glm4v(ids: Mapping[str, int]) -> dict[str, Any]:
    names = ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id")
    tokens = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>")
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    return {
        **{name: ids[token] for name, token in zip(names, tokens)},
        "text_config": {**TEXT, "rope_parameters": {**rope, "mrope_section": [2, 3, 3]}},
        "vision_config": {**QWEN_EYE, "image_size": 64},
    }


_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_TILES = {**_HALVES, "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
_IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS_TEMPLATE = """\
<|im_start|>{% for message in messages %}{{ message["role"] | capitalize }}:
{%- if message["content"] is string %} {{ message["content"] }}{% else %}
{%- for part in message["content"] %}
{{- "<image>" if part["type"] == "image" else " " + part["text"] }}
{%- endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
_QWEN_PIXELS = {**_HALVES, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
_QWEN: dict[str, Any] = {
    "template": CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    "special": (*QWEN_TOKENS, VIDEO),
}
_QWEN_PROCESSOR = {**_QWEN_PIXELS, "image_processor_type": "Qwen2VLImageProcessor"}
_GLM_PICTURES = (
    *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
)

_IDEFICS3 = Tiny(
    config=_idefics3,
    image_processor={**_TILES, "image_processor_type": "Idefics3ImageProcessor"},
    processor={"processor_class": "Idefics3Processor", "image_seq_len": 4},
    template=_IDEFICS_TEMPLATE,
    special=("<|im_start|>", *_IDEFICS_TOKENS),
    plain=_ROWS,
    eos="<end_of_utterance>",
)

FAMILIES: Mapping[str, Tiny] = {
    "idefics3": _IDEFICS3,
    "smolvlm": replace(
        _IDEFICS3,
        image_processor={**_TILES, "image_processor_type": "SmolVLMImageProcessor"},
        processor={"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    ),
    "qwen2_5_vl": Tiny(
        config=_qwen2_5,
        image_processor={**_QWEN_PROCESSOR, "min_pixels": 64, "max_pixels": 2**14},
        processor={"processor_class": "Qwen2_5_VLProcessor"},
        **_QWEN,
    ),
    "qwen3_vl": Tiny(
        config=_qwen3,
        image_processor={
            **_QWEN_PROCESSOR,
            "size": {"shortest_edge": 64, "longest_edge": 2**14},
        },
        processor={"processor_class": "Qwen3VLProcessor"},
        plain=THINK,
        **_QWEN,
    ),
    "internvl": Tiny(
        config=_internvl,
        image_processor={
            **_HALVES,
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 32, "width": 32},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
        },
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
        tokenizer={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n"),
        special=("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    ),
    "mistral3": Tiny(
        config=_mistral3,
        image_processor={
            **_HALVES,
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 64},
            "patch_size": 4,
        },
        processor={
            "processor_class": "PixtralProcessor",
            "patch_size": 4,
            "spatial_merge_size": 2,
        },
        template="""\
<s>{% for message in messages %}{% if message["role"] == "user" %}[INST]
{%- for part in message["content"] %}
{{- "[IMG]" if part["type"] == "image" else part["text"] }}
{%- endfor %}[/INST]{% else %}{{ message["content"][0]["text"] }}</s>{% endif %}{% endfor %}""",
        special=("<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        eos="</s>",
    ),
    "llava_onevision": Tiny(
        config=_llava_onevision,
        image_processor={
            **_HALVES,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 32, "width": 32},
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]],
        },
        processor={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
        template=CHATML.replace("IMAGE", "<image>\\n"),
        published=("vision_tower.", "vision_tower.vision_model."),
        special=("<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    ),
    "glm4v": Tiny(
        config=_glm4v,
        image_processor={
            **_QWEN_PIXELS,
            "image_processor_type": "Glm4vImageProcessor",
            "size": {"shortest_edge": 64, "longest_edge": 2**14},
        },
        processor={"processor_class": "Glm4vProcessor"},
        template="""\
[gMASK]<sop>{% for message in messages %}<|{{ message["role"] }}|>
{% if message["content"] is string %}{{ message["content"] }}{% else %}
{%- for part in message["content"] %}
{{- "<|begin_of_image|><|image|><|end_of_image|>" if part["type"] == "image" else part["text"] }}
{%- endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}""",
        special=("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", *_GLM_PICTURES),
        eos="<|endoftext|>",
        plain=THINK,
    ),
}

UNTESTED: Mapping[str, Tiny] = {
    "idefics2": replace(
        _IDEFICS3,
        config=_idefics2,
        image_processor={
            **_HALVES,
            "image_processor_type": "Idefics2ImageProcessor",
            "do_image_splitting": False,
            "size": {"longest_edge": 64, "shortest_edge": 32},
        },
        processor={"processor_class": "Idefics2Processor", "image_seq_len": 4},
        plain=(),
    ),
}
"""Of an architecture that is run when it is asked for."""
