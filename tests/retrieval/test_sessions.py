from pathlib import Path

import onnxruntime
import pytest

from mmrag_batch.errors import MissingError, UnavailableError
from mmrag_batch.retrieval.sessions import open_session


def test_a_graph_opens_on_the_cpu_with_its_threads(tiny_retriever_dir: Path) -> None:
    session = open_session(tiny_retriever_dir / "question_tower.onnx", device="cpu", threads=1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"question_tower\.onnx is missing"):
        open_session(tmp_path / "question_tower.onnx", device="cpu")


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "question_tower.onnx").write_bytes(b"no graph")
    with pytest.raises(MissingError, match=r"question_tower\.onnx cannot be loaded"):
        open_session(tmp_path / "question_tower.onnx", device="cpu")


def test_a_device_that_is_not_there_is_refused(
    tiny_retriever_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnavailableError, match="--device cpu"):
        open_session(tiny_retriever_dir / "question_tower.onnx", device="cuda")


def test_a_silent_fallback_to_the_cpu_is_refused(
    tiny_retriever_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FellBack:
        def __init__(self, *args: object, **settings: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(UnavailableError, match="fell back to the CPU"):
        open_session(tiny_retriever_dir / "question_tower.onnx", device="cuda")
