import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.families.family import open_family
from mmrag_batch.families.mllama.inputs import load_image_processor
from mmrag_batch.families.mllama.loading import load_model
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.train.looking import ask
from mmrag_batch.train.settings import VisionConfig
from mmrag_batch.train.vision import Asked, Recogniser, process, train_vision
from tests.train.test_encoders import table as table  # a fixture

WEIGHTS = "model.safetensors"


@pytest.fixture
def config(table: Path, tmp_path: Path) -> VisionConfig:
    """A new generator as small as it can be, of one tile."""
    return VisionConfig(
        table=table,
        out=tmp_path / "run",
        steps=40,
        batch_size=16,
        learning_rate=3e-3,
        vocabulary=300,
        hidden_size=32,
        heads=2,
        kv_heads=1,
        intermediate_size=64,
        vision_hidden_size=32,
        vision_layers=2,
        vision_heads=2,
        image_size=32,
        patch_size=16,
        tiles=1,
    )


def test_a_new_tower_learns_what_a_table_asks(
    config: VisionConfig, steps: dict[str, tuple[int, int | None]]
) -> None:
    out = train_vision(config)
    first, last, score = map(json.loads, (config.out / "metrics.jsonl").read_text().splitlines())
    assert (first["pictures"], first["answers"], first["held_out"]) == (48, 8, 5)
    assert last["loss"] < 1.5  # the logarithm of 8 is 2.1
    assert 0 <= score["answer_accuracy"] <= 1
    assert steps["Training"] == (40, 40)
    before = load_file(config.out / "untrained" / "model.safetensors")
    after = load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("vision_model" in name for name in changed)
    assert Renderer(out).answer_ids("red")


def test_the_language_model_learns_to_look_and_the_tower_stays(config: VisionConfig) -> None:
    short = replace(config, steps=2, initializer_range=0.18)
    before = load_file(train_vision(replace(short, out=config.out / "tower")) / WEIGHTS)
    after = load_file(train_vision(replace(short, language_steps=40)) / WEIGHTS)
    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    *_, last, score = map(json.loads, lines)
    assert last["language_loss"] < 2  # of two tokens, one of them always the same; at first it is 6
    assert 0 <= score["language_accuracy"] <= 1
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("vision_model" in name for name in changed)
    assert any("projector" in name for name in changed)


def test_questions_are_answered_alike_alone_and_among_others_of_other_lengths(
    tiny_generator_dir: Path,
) -> None:
    """On pictures of four tiles and of three."""
    generator = load_model(tiny_generator_dir, dtype=torch.float32)
    pictures = [Image.new("RGB", size, "red") for size in ((40, 40), (90, 30))]
    inputs = process(load_image_processor(tiny_generator_dir), pictures)
    assert inputs["aspect_ratio_mask"].sum(dim=-1).flatten().tolist() == [4, 3]
    asked = [[([5, 6, 7], [8, 9]), ([5], [8, 9])], [([5, 6], [7, 8, 9])]]
    with torch.inference_mode():
        logits, labels = ask(generator, inputs, asked)
        second = {name: tensor[1:] for name, tensor in inputs.items()}
        alone, alone_labels = ask(generator, second, asked[1:])
    assert labels.tolist()[1:] == [[8, 9, -100, -100], [-100, 7, 8, 9]]
    assert torch.equal(labels[2:], alone_labels)
    torch.testing.assert_close(logits[2:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (90, 30)])
def test_a_picture_fills_its_only_tile_whatever_its_size(
    config: VisionConfig, size: tuple[int, int]
) -> None:
    out = train_vision(replace(config, steps=1))
    inputs = process(load_image_processor(out), [Image.new("RGB", size, "white")])
    assert inputs["pixel_values"].shape == (1, 1, 1, 3, 32, 32)
    rows = (inputs["pixel_values"][0, 0, 0, 0] > 1).any(dim=0)  # white, and black where it ends
    assert rows.all()
    prompt = [open_family(out).image_token_id, 5, 6]
    batch = open_family(out).collate([prompt], [[Image.new("RGB", size, "white")]], pad_id=0)
    assert load_model(out, dtype=torch.float32)(**batch).logits.shape[:2] == (1, 3)


def test_the_tower_of_a_generator_that_is_there_goes_on_learning(
    config: VisionConfig, tiny_generator_dir: Path
) -> None:
    plain = VisionConfig(
        table=config.table, out=config.out, steps=1, batch_size=8, learning_rate=1e-3
    )
    with pytest.raises(ConfigError, match=r"hidden_size.*`base` has sizes of its own"):
        train_vision(replace(config, base=tiny_generator_dir))
    out = train_vision(replace(plain, base=tiny_generator_dir))
    assert not (config.out / "untrained").exists()
    assert {file.name for file in out.iterdir()} == {f.name for f in tiny_generator_dir.iterdir()}


def test_questions_on_a_picture_are_answered_alike_alone_and_among_others(
    tiny_generator_dir: Path,
) -> None:
    recogniser = Recogniser(load_model(tiny_generator_dir, dtype=torch.float32), 50, 4).eval()
    pictures = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    inputs = process(load_image_processor(tiny_generator_dir), pictures)
    asked = [[[1, 2], [3]], [[4, 5, 6]]]
    with torch.inference_mode():
        together = recogniser(inputs, asked)
        alone = recogniser({name: tensor[1:] for name, tensor in inputs.items()}, asked[1:])
    assert together.shape == (3, 4)
    assert torch.allclose(together[2:], alone, atol=1e-5)


def test_a_table_that_asks_about_no_picture_is_refused(
    tiny_generator_dir: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text('question_text,answer_choices,label\nWhy?,"[""a"", ""b""]",a\n')
    tokenizer = Tokenizer.from_file(str(tiny_generator_dir / "tokenizer.json"))
    with pytest.raises(InputError, match="no two answers to questions about pictures"):
        Asked(table, tokenizer)
