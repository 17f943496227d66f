"""Encoders in 8 bits, the packaged ones, which are trained: each embedding is of its content."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from mmrag_batch.export.quantise import quantise
from mmrag_batch.export.sample import read_sample
from mmrag_batch.parts import read_spec
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.preprocess import Floats
from mmrag_batch.retrieval.sessions import open_session, run_session
from mmrag_batch.settings import DEMO_BUNDLE

CONTENTS = read_sample(None)
BATCHES = (1, 2, 3, 5, 8, 13, 24)
Values = NDArray[np.float32] | NDArray[np.int64]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def encoders(request: pytest.FixtureRequest, int8_bundle: Path) -> Path:
    """Encoders whose embeddings may not depend on the batch."""
    return (int8_bundle if request.param == "int8" else DEMO_BUNDLE) / "retriever"


def opened(encoders: Path) -> Encoder:
    return Encoder(encoders, read_spec(encoders), device="cpu", threads=2)


def in_batches(file: Path, inputs: Values, name: str) -> Iterator[Floats]:
    """What a graph makes of items in batches of many sizes, in another order each time."""
    session = open_session(file, device="cpu", threads=2)
    for size in BATCHES:
        order = np.random.default_rng(size).permutation(len(inputs))
        starts = range(0, len(inputs), size)
        parts = [run_session(session, {name: inputs[order[at : at + size]]}) for at in starts]
        yield np.concatenate(parts)[np.argsort(order)]


def test_o01_a_picture_is_the_same_bytes_alone_and_in_any_batch(encoders: Path) -> None:
    encoder = opened(encoders)
    pixels = np.stack([encoder.pixels(picture) for picture in CONTENTS.pictures])
    alone, *batched = in_batches(encoders / "image_encoder.onnx", pixels, "pixels")
    assert {array.tobytes() for array in batched} == {alone.tobytes()}
    assert encoder.encode_images(CONTENTS.pictures).tobytes() == alone.tobytes()
    assert len(np.unique(alone, axis=0)) == len(CONTENTS.pictures)


def test_o01_a_text_is_the_same_bytes_alone_and_in_any_batch(encoders: Path) -> None:
    encoder, length = opened(encoders), read_spec(encoders).context_length
    tokens = encoder.tokens(CONTENTS.texts)
    assert tokens.shape[1] < length
    tokens = np.pad(tokens, [(0, 0), (0, length - tokens.shape[1])])  # as no batch of theirs is
    alone, *batched = in_batches(encoders / "text_encoder.onnx", tokens, "tokens")
    unpadded = [encoder.encode_texts([text]) for text in CONTENTS.texts]
    assert {array.tobytes() for array in batched} == {alone.tobytes()}
    assert np.concatenate(unpadded).tobytes() == alone.tobytes()
    assert encoder.encode_texts(CONTENTS.texts).tobytes() == alone.tobytes()


def test_embeddings_in_8_bits_are_near_those_in_32(int8_bundle: Path) -> None:
    few, many = opened(int8_bundle / "retriever"), opened(DEMO_BUNDLE / "retriever")
    for method, contents in (
        ("encode_images", CONTENTS.pictures),
        ("encode_texts", CONTENTS.texts),
    ):
        actual, expected = getattr(few, method)(contents), getattr(many, method)(contents)
        cosines = (actual * expected).sum(axis=1)
        assert 0.999 < cosines.min() < 0.9999999


@pytest.mark.parametrize("before", ["nothing", "Gelu"])
def test_a_product_is_near_its_own_whatever_its_rows_hold(tmp_path: Path, before: str) -> None:
    """Rows of zeros, of one sign, of one large value, and of sizes that no scale would suit."""
    dice = np.random.default_rng(0)
    matrix = dice.standard_normal((48, 20)).astype(np.float32)
    matrix[:, 3] = 0
    rows = dice.standard_normal((9, 48)).astype(np.float32)
    rows[0], rows[1], rows[2] = 0, np.abs(rows[1]), -np.abs(rows[2])
    rows[3, 7] = 1e3
    rows *= np.float32(10.0) ** np.array([0, 0, 0, 0, -6, -3, 0, 3, 6], np.float32)[:, None]
    nodes = [helper.make_node("MatMul", ["x", "matrix"], ["y"])]
    if before == "Gelu":
        nodes[0].input[0] = "gelu"
        nodes.insert(0, helper.make_node("Gelu", ["x"], ["gelu"]))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 20])],
        [helper.make_tensor("matrix", TensorProto.FLOAT, matrix.shape, matrix.tobytes(), raw=True)],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = ir.from_proto(whole)
    ir.save(model, tmp_path / "fp32.onnx")
    quantise(model)
    ir.save(model, tmp_path / "int8.onnx")
    expected, actual = (
        run_session(open_session(tmp_path / f"{name}.onnx", device="cpu"), {"x": rows})
        for name in ("fp32", "int8")
    )
    # A byte is off by half a step at most, and the steps of a row and a column are what their
    # largest values need: GELU's at least 0.17 of them.
    large = np.maximum(np.abs(rows).max(axis=1), 0.17 if before == "Gelu" else 0)[:, None]
    bound = large * np.abs(matrix).max(axis=0) * 48 / 127
    assert (np.abs(actual - expected) <= bound).all()
    assert np.isfinite(actual).all() and not actual[:, 3].any()


def test_encoders_with_one_scale_for_a_batch_are_warned_of(
    int8_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(int8_bundle / "retriever")
    assert caplog.messages == []
    old = shutil.copytree(int8_bundle, tmp_path / "old") / "retriever"
    quantize_dynamic(prepared(tmp_path), old / "text_encoder.onnx", weight_type=QuantType.QInt8)
    with caplog.at_level(logging.WARNING):
        encoder = opened(old)
    together, alone = encoder.encode_texts(CONTENTS.texts), encoder.encode_texts(CONTENTS.texts[:1])
    assert np.abs(together[0] - alone[0]).max() > 1e-3  # which is what the warning is for
    assert [message for message in caplog.messages if "--precision int8" in message]
    assert str(old) in caplog.text


def prepared(folder: Path) -> Path:
    """The packaged text encoder as ONNX Runtime's quantiser wants it: without a warning."""
    model = ir.load(DEMO_BUNDLE / "retriever" / "text_encoder.onnx")
    model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    ir.save(model, folder / "prepared.onnx")
    return folder / "prepared.onnx"
