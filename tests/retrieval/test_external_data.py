"""A graph may keep its weights in another file of its own folder, and nowhere else."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mmrag_batch.errors import DeniedError
from mmrag_batch.retrieval.sessions import open_session

SIZE = 2000


@pytest.fixture
def graph(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a graph that adds weights from another file. There are some beside and above it."""
    folder = tmp_path / "retriever"
    folder.mkdir()
    for file in (tmp_path / "w.bin", folder / "w.bin"):
        file.write_bytes(np.full(SIZE, 2, np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")

    def write(location: str) -> Path:
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[SIZE])
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE]) for name in "xy")
        add = helper.make_node("Add", ["x", "w"], ["y"])
        model = helper.make_model(
            helper.make_graph([add], "add", [x], [y], [weights]),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        (folder / "graph.onnx").write_bytes(model.SerializeToString())
        return folder / "graph.onnx"

    return write


def test_weights_beside_the_graph_are_read(graph: Callable[[str], Path]) -> None:
    session = open_session(graph("w.bin"), device="cpu")
    (result,) = session.run(["y"], {"x": np.ones(SIZE, np.float32)})
    assert set(result.tolist()) == {3.0}


@pytest.mark.parametrize("location", ["../w.bin", "link.bin", "absolute"])
def test_h03_weights_outside_the_folder_are_refused(
    graph: Callable[[str], Path], tmp_path: Path, location: str
) -> None:
    source = os.fspath(tmp_path / "w.bin") if location == "absolute" else location
    with pytest.raises(DeniedError, match="outside its folder"):
        open_session(graph(source), device="cpu")
