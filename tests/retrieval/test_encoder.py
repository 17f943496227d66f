from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from PIL import Image

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.retrieval import encoder as encoder_module
from mmrag_batch.retrieval.encoder import IMAGE_BATCH, Encoder
from mmrag_batch.retrieval.preprocess import Floats, open_tokenizer, tokenize
from mmrag_batch.retrieval.sessions import run_session
from mmrag_batch.train.imagebind import load_encoders

TEXTS = ["a red cube", "", "what does the red cube cost? " * 9, "a", "ein Würfel 🎲", "a red cube"]


@pytest.fixture(scope="module")
def encoder(tiny_retriever_dir: Path) -> Encoder:
    spec = read_retriever_spec(tiny_retriever_dir)
    return Encoder(tiny_retriever_dir, spec, device="cpu", threads=4)


def picture(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_a_text_is_embedded_the_same_alone_and_among_others(encoder: Encoder) -> None:
    together = encoder.encode_texts(TEXTS)
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_array_equal(together, alone)
    assert together.shape == (6, 24)
    assert np.abs(together[0] - together[2]).max() > 0.01


def test_texts_are_split_into_batches_in_no_matter_what_order(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder.encode_texts(TEXTS)
    monkeypatch.setattr(encoder_module, "TOKEN_BUDGET", 20)
    np.testing.assert_array_equal(encoder.encode_texts(TEXTS), expected)


def test_little_of_a_batch_is_padding_where_texts_differ_in_length(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch up to the token budget would pad the many short texts to the few long ones."""
    texts = [f"{n} " + "red " * (n % 4 * 9) for n in range(200)]
    expected = encoder.encode_texts(texts)
    read: list[int] = []
    run = run_session

    def note(session: InferenceSession, inputs: Mapping[str, NDArray[Any]], *, size: int) -> Floats:
        read.append(inputs["tokens"].size)
        return run(session, inputs, size=size)

    monkeypatch.setattr(encoder_module, "run_session", note)
    np.testing.assert_array_equal(encoder.encode_texts(texts), expected)
    needed = int((encoder.tokens(texts).argmax(axis=1) + 1).sum())
    assert sum(read) < 1.15 * needed
    assert len(read) < 10


def test_an_image_is_embedded_the_same_alone_and_among_others(encoder: Encoder) -> None:
    images = [picture(number) for number in range(IMAGE_BATCH + 3)]
    together = encoder.encode_images(images)
    alone = np.concatenate([encoder.encode_images([image]) for image in images])
    np.testing.assert_array_equal(together, alone)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_images_are_taken_a_batch_at_a_time(
    tiny_retriever_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are threads: what a layer passes on stays in the caches of their cores."""
    spec = read_retriever_spec(tiny_retriever_dir)
    encoder = Encoder(tiny_retriever_dir, spec, device="cpu", threads=3)
    taken: list[int] = []
    ahead: list[int] = []
    run = run_session

    def source() -> Iterator[Image.Image]:
        for number in range(8):
            taken.append(number)
            yield picture(number)

    def note(session: InferenceSession, inputs: Mapping[str, NDArray[Any]], *, size: int) -> Floats:
        ahead.append(len(taken))
        return run(session, inputs, size=size)

    monkeypatch.setattr(encoder_module, "run_session", note)
    encoder.encode_images(source())
    assert ahead == [3, 6, 8]


def test_nothing_gives_no_embeddings(encoder: Encoder) -> None:
    assert encoder.encode_images([]).shape == (0, 24)


def test_texts_are_cleaned_where_the_spec_says_so(
    encoder: Encoder, tiny_retriever_dir: Path
) -> None:
    spec = replace(read_retriever_spec(tiny_retriever_dir), clean_texts=True)
    cleaning = Encoder(tiny_retriever_dir, spec, device="cpu", threads=1)
    texts = ["\uff32\uff25\uff24 &amp;amp;  cube", "e\ufb03cient\x07"]
    assert cleaning.tokens(texts).tolist() == encoder.tokens(["red & cube", "efficient"]).tolist()
    assert cleaning.tokens(texts).tolist() != encoder.tokens(texts).tolist()


def test_texts_are_embedded_as_torch_embeds_them(encoder: Encoder, tiny_encoders_dir: Path) -> None:
    tokenizer = open_tokenizer(tiny_encoders_dir / "tokenizer.json", 16)
    with torch.inference_mode():
        tokens = torch.from_numpy(tokenize(tokenizer, TEXTS))
        expected = load_encoders(tiny_encoders_dir).encode_text(tokens).numpy()
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-4)
