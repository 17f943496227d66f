"""A small generator from nothing: Llama 3.2 Vision's architecture and file layout, random weights.

Real in everything but size: four self-attention layers to one gated cross-attention layer, grouped
keys and values, tiled images, a byte-level BPE tokenizer with Llama 3's special tokens.

    mmrag-batch demo generator DIR --table questions.csv

writes one whose tokenizer is trained on the prompts of a table.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.families.mllama.vision import prepare_vision
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import with_pages
from mmrag_batch.prompt import PromptSpec, build_prompt
from mmrag_batch.records import Evidence
from mmrag_batch.table.names import AS_THEY_ARE, Names
from mmrag_batch.table.rows import read_rows

BOS = "<|begin_of_text|>"
EOS = "<|eot_id|>"
PAD = "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = (BOS, PAD, "<|start_header_id|>", "<|end_header_id|>", EOS)

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {%- if message["content"] is string %}
        {{- message["content"] }}
    {%- else %}
        {%- for part in message["content"] %}
            {{- "<|image|>" if part["type"] == "image" else part["text"] }}
        {%- endfor %}
    {%- endif %}
    {{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class GeneratorSizes:
    """How large a generator is. The defaults are those of the demo bundle's."""

    vocabulary: int = 768
    """Most tokens of the BPE, the 256 bytes included, special tokens not."""
    hidden_size: int = 128
    layers: int = 5
    """Text layers; the 4th, 9th, ... are cross-attention, as in Llama 3.2 Vision."""
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 384
    vision_hidden_size: int = 96
    vision_layers: int = 3
    vision_global_layers: int = 1
    vision_heads: int = 4
    image_size: int = 48
    """Side of a tile in pixels. A picture no larger is resized to fill one."""
    patch_size: int = 16
    tiles: int = 4
    """Most tiles of an image: 4, as in the original, or 1, which every picture fills whatever its
    size. One of 64 pixels would fill less than half of the four tiles of 48 that it takes."""
    context_length: int = 4096
    initializer_range: float = 0.02
    """Standard deviation of the text weights at first. This is the original's, which is 32 times
    as wide: what a small one makes of a word and of an image is too faint then to be compared, and
    it learns to name what it sees, but not to say whether that is what was asked about. For that
    give it about 1/sqrt(hidden_size)."""
    gate: float = 0.5
    """Where every gate starts. The original starts at 0 on top of a trained Llama; a model trained
    from nothing must see its images from the first step."""


def build_generator(
    directory: Path, texts: Iterable[str], *, sizes: GeneratorSizes | None = None, seed: int = 0
) -> None:
    """Write an untrained generator with a tokenizer trained on `texts` into `directory`."""
    sizes = sizes or GeneratorSizes()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, sizes.vocabulary)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(sizes))
    _write_json(directory / "preprocessor_config.json", _preprocessor_config(sizes))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")

    model = initial_model(model_config(tokenizer, sizes), gate=sizes.gate, seed=seed)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model.save_pretrained(directory)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE whose special tokens follow its vocabulary, the image token last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, Mllama.placeholder])
    return tokenizer


def model_config(tokenizer: Tokenizer, sizes: GeneratorSizes) -> MllamaConfig:
    """The configuration of a generator of these sizes.

    Mllama's head leaves out the image token, which is never generated: the token is the last one
    and its id equals the head's size (the embedding has eight rows more).
    """
    image_id = token_id(tokenizer, Mllama.placeholder)
    text = MllamaTextConfig(
        vocab_size=image_id,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        intermediate_size=sizes.intermediate_size,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        max_position_embeddings=sizes.context_length,
        initializer_range=sizes.initializer_range,
        cross_attention_layers=list(range(3, sizes.layers, 5)),
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    features = list(range(sizes.vision_layers))
    vision = MllamaVisionConfig(
        hidden_size=sizes.vision_hidden_size,
        intermediate_size=4 * sizes.vision_hidden_size,
        num_hidden_layers=sizes.vision_layers,
        num_global_layers=sizes.vision_global_layers,
        attention_heads=sizes.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        intermediate_layers_indices=features,
        vision_output_dim=sizes.vision_hidden_size * (1 + len(features)),
        max_num_tiles=sizes.tiles,
        supported_aspect_ratios=[
            [width, height]
            for width in range(1, sizes.tiles + 1)
            for height in range(1, sizes.tiles // width + 1)
        ],
    )
    return MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id)


def initial_model(
    config: MllamaConfig, *, gate: float, seed: int
) -> MllamaForConditionalGeneration:
    """Random weights with every gate set to `gate`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MllamaForConditionalGeneration(config)
    prepare_vision(model.model.vision_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf.endswith("gate") or leaf.startswith("gate_"):
                parameter.fill_(gate)
    return model


def token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None  # every token asked for was added in train_tokenizer
    return token_id


def _tokenizer_config(sizes: GeneratorSizes) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "MllamaProcessor",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": sizes.context_length,
        "clean_up_tokenization_spaces": False,
    }


def _preprocessor_config(sizes: GeneratorSizes) -> dict[str, object]:
    return {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        "size": {"height": sizes.image_size, "width": sizes.image_size},
        "max_image_tiles": sizes.tiles,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 2,
    }


def _write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def prompt_texts(table: Path, names: Names = AS_THEY_ARE) -> Iterator[str]:
    """The text of each question of a table, with all its documents as evidence."""
    images, spec = ImageLoader(table.parent), PromptSpec(1, 0, "letter")
    for row in read_rows(table, names=names):
        if row.question is not None:
            question = with_pages(row.question, images)
            evidence = [Evidence(document, 0.0) for document in question.documents]
            prompt = build_prompt(question, evidence, spec)
            yield from (part["text"] for part in prompt.messages[0]["content"] if "text" in part)
