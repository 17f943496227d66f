import json
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from mmrag_batch.retrieval.preprocess import open_tokenizer
from mmrag_batch.train.demo_encoders import train_encoders
from mmrag_batch.train.demo_pairs import sentences
from mmrag_batch.train.encoders import END, START, train_tokenizer
from mmrag_batch.train.imagebind import load_encoders
from mmrag_batch.train.settings import DemoEncodersConfig


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(sentences(Random(0), 200), context_length=12)


def test_start_and_end_have_the_two_highest_ids(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    assert (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) == (size - 2, size - 1)
    assert tokenizer.token_to_id("<pad>") == 0


def test_texts_stand_between_start_and_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a red star").ids
    size = tokenizer.get_vocab_size()
    assert (ids[0], ids[-1]) == (size - 2, size - 1)
    assert all(0 < token < size - 2 for token in ids[1:-1])


def test_a_long_text_keeps_its_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The price of the red star is 12 coins. " * 9).ids
    assert len(ids) == 12
    assert ids[-1] == tokenizer.token_to_id(END)


def test_case_does_not_matter(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The RED Star").ids == tokenizer.encode("the red star").ids
    assert tokenizer.encode("a blue star").ids != tokenizer.encode("a red star").ids


def test_any_letter_has_tokens(tokenizer: Tokenizer) -> None:
    for text in ("שלום", "🎈"):
        assert len(tokenizer.encode(text).ids) > 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoEncodersConfig:
    return DemoEncodersConfig(
        out=tmp_path_factory.mktemp("run"),
        steps=3,
        picture_batch=6,
        text_batch=6,
        learning_rate=1e-3,
        pictures=12,
        image_size=16,
        width=16,
        image_blocks=1,
        text_blocks=1,
        heads=2,
        context_length=20,
        embedding_size=8,
    )


@pytest.fixture(scope="module")
def trained(config: DemoEncodersConfig) -> Path:
    return train_encoders(config)


def test_the_trained_encoders_load_with_their_tokenizer(trained: Path) -> None:
    model = load_encoders(trained)
    tokenizer = open_tokenizer(trained / "tokenizer.json", model.config.context_length)
    assert model.config.vocabulary == tokenizer.get_vocab_size()
    tokens = torch.tensor([tokenizer.encode("a red star").ids])
    assert model.encode_text(tokens).shape == (1, 8)
    assert model.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 8)


def test_the_run_reports_its_losses_and_its_accuracy(
    trained: Path, config: DemoEncodersConfig
) -> None:
    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    first, last, accuracy = map(json.loads, lines)
    assert first["parameters"] > 0
    assert (last["step"], last["picture_loss"] > 0, last["text_loss"] > 0) == (3, True, True)
    assert 0 <= accuracy["zero_shot_accuracy"] <= 1
