from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from mmrag_batch.families.mllama.family import Mllama
from mmrag_batch.families.mllama.inputs import collate, load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.mllama import (
    SPECIAL_TOKENS,
    GeneratorSizes,
    build_generator,
    initial_model,
    model_config,
    prompt_texts,
    train_tokenizer,
)

SIZES = GeneratorSizes(
    vocabulary=300,
    hidden_size=16,
    heads=2,
    kv_heads=1,
    intermediate_size=32,
    vision_hidden_size=16,
    vision_layers=1,
    vision_heads=2,
    image_size=16,
    context_length=256,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["What does the red star cost? 12 coins."], 300)


@pytest.fixture(scope="module")
def model(tiny_generator_dir: Path) -> MllamaForConditionalGeneration:
    return load_model(tiny_generator_dir, dtype=torch.float32)


def test_one_cross_attention_layer_follows_each_three_and_then_each_four(
    tokenizer: Tokenizer,
) -> None:
    """As in Llama 3.2 Vision, whose 40 layers cross at 3, 8, ..., 38."""
    assert text_config(tokenizer, 40).cross_attention_layers == [3, 8, 13, 18, 23, 28, 33, 38]
    assert text_config(tokenizer, 5).cross_attention_layers == [3]


def text_config(tokenizer: Tokenizer, layers: int) -> MllamaTextConfig:
    config = model_config(tokenizer, replace(SIZES, layers=layers)).text_config
    assert isinstance(config, MllamaTextConfig)
    return config


def test_keys_and_values_are_shared_by_heads(model: MllamaForConditionalGeneration) -> None:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for kind in ("self_attn", "cross_attn"):
        (query,) = {
            s for n, s in shapes.items() if n.endswith(f"{kind}.q_proj.weight") and "language" in n
        }
        (key,) = {
            s for n, s in shapes.items() if n.endswith(f"{kind}.k_proj.weight") and "language" in n
        }
        assert query[0] == 2 * key[0]


def test_every_gate_is_open(model: MllamaForConditionalGeneration) -> None:
    gates = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith(("gate", "gate_attn", "gate_ffn"))
    }
    assert any("cross_attn_attn_gate" in name for name in gates)
    assert any("cross_attn_mlp_gate" in name for name in gates)
    assert any("gated_positional_embedding.gate" in name for name in gates)
    assert any("gate_ffn" in name for name in gates)
    assert all(torch.all(gate == 0.5) for gate in gates.values())


@torch.inference_mode()
def test_an_untrained_model_sees_its_images(
    model: MllamaForConditionalGeneration, tiny_generator_dir: Path, demo_table: Path
) -> None:
    images = ImageLoader(demo_table.parent)
    sources = [
        r.question.image for r in read_labelled_rows(demo_table) if r.question and r.question.image
    ]
    image_id = model.config.image_token_index
    first, second = (
        model(
            **collate(
                [[image_id, 5, 6]],
                [[images.load(source)]],
                load_image_processor(tiny_generator_dir),
                0,
                image_id,
            )
        ).logits
        for source in sources[:2]
    )
    assert (first[0, -1] - second[0, -1]).abs().max() > 1e-4


def test_the_image_token_is_the_one_that_the_head_leaves_out(
    model: MllamaForConditionalGeneration, tiny_generator_dir: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_generator_dir / "tokenizer.json"))
    image_id = tokenizer.token_to_id(Mllama.placeholder)
    assert image_id == tokenizer.get_vocab_size() - 1
    assert image_id == model.config.image_token_index
    assert model.lm_head.out_features == image_id
    assert model.model.language_model.embed_tokens.num_embeddings == image_id + 8


def test_the_generation_config_names_the_special_tokens(
    model: MllamaForConditionalGeneration, tiny_generator_dir: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_generator_dir / "tokenizer.json"))
    bos, pad, _, _, eos = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    found = model.generation_config
    assert (found.bos_token_id, found.pad_token_id, found.eos_token_id) == (bos, pad, eos)


def test_a_text_comes_back_from_its_tokens(tokenizer: Tokenizer) -> None:
    for text in ("  naïve 🎈\n\nΩ", "What does it cost?"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_seed_settles_the_weights_and_leaves_other_draws_alone(tokenizer: Tokenizer) -> None:
    config = model_config(tokenizer, SIZES)
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    first = initial_model(config, gate=0.5, seed=0).lm_head.weight
    assert torch.equal(torch.rand(4), drawn)
    assert torch.equal(first, initial_model(config, gate=0.5, seed=0).lm_head.weight)
    assert not torch.equal(first, initial_model(config, gate=0.5, seed=1).lm_head.weight)


def test_a_table_gives_the_texts_of_its_prompts(demo_table: Path, tmp_path: Path) -> None:
    texts = list(prompt_texts(demo_table))
    rows = list(read_labelled_rows(demo_table))
    assert len(texts) == len(rows)
    for text, row in zip(texts, rows):
        assert str(row.cells["question_text"]) in text
        assert row.question is not None
        assert all(d.text in text for d in row.question.documents if d.text is not None)
    build_generator(tmp_path, texts, sizes=SIZES)
    assert load_model(tmp_path, dtype=torch.float32).lm_head.in_features == 16
