from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from mmrag_batch.bundle import Precision, read_retriever_spec
from mmrag_batch.errors import InternalError, MissingError
from mmrag_batch.export import graphs, onnx_retriever, parity
from mmrag_batch.export.encoders import open_encoders
from mmrag_batch.export.onnx_retriever import export_encoders, export_towers
from mmrag_batch.export.parity import LEAST_COSINE, TOLERANCE, check_parity
from mmrag_batch.retrieval.sessions import open_session
from mmrag_batch.train.imagebind import load_encoders
from mmrag_batch.train.towers import Towers, TowersConfig, load_towers, save_towers


@pytest.fixture
def trained_towers_dir(tmp_path: Path) -> Path:
    """Towers whose networks do not output zeros, as untrained ones do."""
    torch.manual_seed(0)
    towers = Towers(TowersConfig(embedding_size=24, hidden_size=32))
    for parameter in towers.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.5)
    save_towers(towers, tmp_path / "trained")
    return tmp_path / "trained"


@pytest.fixture
def spec_only_dir(tiny_retriever_dir: Path, tmp_path: Path) -> Path:
    """Where encoders were exported, as far as towers look."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "retriever.json").write_bytes((tiny_retriever_dir / "retriever.json").read_bytes())
    return out


def test_encoders_are_exported_within_tolerance(
    tiny_encoders_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    steps: dict[str, tuple[int, int | None]],
) -> None:
    figures = export_encoders(tiny_encoders_dir, tmp_path / "out")
    assert {"Hashing weights", "Comparing embeddings with torch"} < steps.keys()
    for graph in ("image_encoder.onnx", "text_encoder.onnx"):
        assert {f"Writing {graph}", f"Comparing {graph} with torch"} < steps.keys()
    assert set(figures) == {
        "image_encoder",
        "image_encoder_attentions",
        "text_encoder",
        "text_encoder_attentions",
        "image_cosine",
        "text_cosine",
        "top_5_agreement",
    }
    assert all(0 < figures[f"{side}_encoder"] <= TOLERANCE for side in ("image", "text"))
    assert all(figures[f"{side}_cosine"] > 0.999999 for side in ("image", "text"))
    assert figures["top_5_agreement"] > 0.99
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "image_encoder.onnx",
        "text_encoder.onnx",
        "tokenizer.json",
        "retriever.json",
        "parity.json",
    }
    assert capsys.readouterr() == ("", "")


def test_the_spec_says_how_the_graphs_are_fed(
    tiny_retriever_dir: Path, tiny_encoders_dir: Path
) -> None:
    spec = read_retriever_spec(tiny_retriever_dir)
    config = load_encoders(tiny_encoders_dir).config
    assert (spec.encoder, spec.licence) == ("imagebind-tiny", "Apache-2.0")
    assert (spec.image_mean, spec.image_std) == (config.image_mean, config.image_std)
    assert (spec.image_size, spec.context_length, spec.embedding_size) == (32, 16, 24)


def test_towers_are_exported_with_their_temperature(
    trained_towers_dir: Path, spec_only_dir: Path
) -> None:
    figures = export_towers(trained_towers_dir, spec_only_dir)
    assert set(figures) == {"question_tower", "document_tower"}
    assert all(figure <= TOLERANCE for figure in figures.values())
    temperature = load_towers(trained_towers_dir).temperature.item()
    assert read_retriever_spec(spec_only_dir).temperature == temperature
    assert temperature < 2  # it was 1 / 0.07 in the untrained towers


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("image_encoder", {"pixels": ["batch", 3, 32, 32]}),
        ("text_encoder", {"tokens": ["batch", "length"]}),
        ("question_tower", {"embeddings": ["batch", 2, 24], "present": ["batch", 2]}),
        ("document_tower", {"embeddings": ["batch", 2, 24], "present": ["batch", 2]}),
    ],
)
def test_graphs_name_their_inputs_and_their_dynamic_dimensions(
    tiny_retriever_dir: Path, name: str, inputs: dict[str, list[object]]
) -> None:
    session = open_session(tiny_retriever_dir / f"{name}.onnx", device="cpu")
    assert {item.name: item.shape for item in session.get_inputs()} == inputs


def test_a_graph_of_other_weights_is_refused(
    trained_towers_dir: Path, tiny_retriever_dir: Path
) -> None:
    tower = load_towers(trained_towers_dir).question
    sample = (torch.rand(2, 2, 24), torch.ones(2, 2))
    with pytest.raises(InternalError, match=r"question_tower.onnx differs .* \(at most 1e-04\)"):
        check_parity(tower, tiny_retriever_dir / "question_tower.onnx", [sample])


def test_a_graph_that_gives_nan_is_refused(tiny_towers_dir: Path, tiny_retriever_dir: Path) -> None:
    tower = load_towers(tiny_towers_dir).question
    sample = (torch.full((2, 2, 24), torch.nan), torch.ones(2, 2))
    with pytest.raises(InternalError, match="by nan"):
        check_parity(tower, tiny_retriever_dir / "question_tower.onnx", [sample])


def test_an_export_out_of_tolerance_leaves_no_spec(
    tiny_encoders_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)
    with pytest.raises(InternalError, match=r"image_encoder\.onnx differs"):
        export_encoders(tiny_encoders_dir, tmp_path)
    with pytest.raises(MissingError):
        read_retriever_spec(tmp_path)


def test_encoders_without_a_tokenizer_are_refused(tiny_encoders_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_encoders_dir / name)
    with pytest.raises(MissingError, match=r"tokenizer.json is missing"):
        export_encoders(tmp_path, tmp_path / "out")


def test_towers_need_exported_encoders(tiny_towers_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no retriever\.json"):
        export_towers(tiny_towers_dir, tmp_path)


@pytest.fixture(scope="module", params=["fp16", "int8"])
def small(
    request: pytest.FixtureRequest,
    tiny_encoders_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Precision, Path, dict[str, float]]:
    """The tiny encoders with fewer bits."""
    precision: Precision = request.param
    out = tmp_path_factory.mktemp(precision)
    (out / "question_tower.onnx").write_bytes(b"of the encoders that were here")
    return precision, out, export_encoders(tiny_encoders_dir, out, precision=precision)


Small = tuple[Precision, Path, dict[str, float]]


def test_every_attention_is_one_operator(small: Small) -> None:
    _, _, figures = small
    assert figures["image_encoder_attentions"] == figures["text_encoder_attentions"] == 2


def test_attentions_read_what_linear_layers_write(small: Small) -> None:
    _, out, _ = small
    for file in ("image_encoder.onnx", "text_encoder.onnx"):
        nodes = onnx.load(out / file).graph.node
        assert not [n for n in nodes if n.op_type == "Transpose" and len(n.attribute[0].ints) == 4]


def test_fewer_bits_keep_the_embeddings(small: Small) -> None:
    precision, out, figures = small
    least = LEAST_COSINE[precision]
    assert all(least <= figures[f"{side}_cosine"] < 0.9999999 for side in ("image", "text"))
    assert read_retriever_spec(out).precision == precision
    assert sorted(path.name for path in out.iterdir()) == [
        "image_encoder.onnx",
        "parity.json",
        "retriever.json",
        "text_encoder.onnx",
        "tokenizer.json",
    ]


def test_fewer_bits_are_in_the_graph(small: Small) -> None:
    precision, out, _ = small
    kind = {"fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}[precision]
    for name in ("image_encoder", "text_encoder"):
        graph = onnx.load(out / f"{name}.onnx").graph
        weights = [
            item for item in graph.initializer if len(item.dims) == 2 and min(item.dims) > 16
        ]
        few = [item for item in weights if item.data_type == kind]
        # What is not multiplied with stays as it is in int8: positions and token embeddings.
        # Nor are the heads, which multiply one token.
        assert len(few) >= (8 if precision == "int8" else len(weights) - 1)


def test_fewer_bits_are_fed_as_many_are(small: Small) -> None:
    _, out, _ = small
    for name, given in (("image_encoder", "tensor(float)"), ("text_encoder", "tensor(int64)")):
        session = open_session(out / f"{name}.onnx", device="cpu")
        assert [item.type for item in session.get_inputs()] == [given]
        assert [item.type for item in session.get_outputs()] == ["tensor(float)"]


def test_graphs_say_whose_weights_they_hold_and_leave_no_towers_of_others(
    small: tuple[Precision, Path, dict[str, float]], tiny_encoders_dir: Path
) -> None:
    precision, out, _ = small
    spec = read_retriever_spec(out)
    whole = open_encoders(tiny_encoders_dir)
    assert (spec.precision, spec.weights) == (precision, whole.hash_weights())
    assert not (out / "question_tower.onnx").exists()
    with torch.no_grad():
        next(whole.text.parameters()).add_(1e-3)
    assert whole.hash_weights() != spec.weights


def test_embeddings_too_far_off_are_refused(
    tiny_encoders_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST_COSINE, "int8", 0.999999)
    with pytest.raises(InternalError, match=r"in int8 keeps a cosine of .* --precision"):
        export_encoders(tiny_encoders_dir, tmp_path, precision="int8")
    with pytest.raises(MissingError):
        read_retriever_spec(tmp_path)


def test_graphs_do_not_say_where_they_were_made(tiny_retriever_dir: Path, small: Small) -> None:
    repository = str(Path(onnx_retriever.__file__).parents[1]).encode()
    graphs = [*tiny_retriever_dir.glob("*.onnx"), *small[1].glob("*.onnx")]
    assert len(graphs) == 6
    assert [graph for graph in graphs if repository in graph.read_bytes()] == []
    assert [graph for graph in graphs if str(small[1]).encode() in graph.read_bytes()] == []


def test_weights_that_a_graph_cannot_hold_lie_beside_it(
    tiny_towers_dir: Path, spec_only_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "PROTOBUF_LIMIT", 1000)
    export_towers(tiny_towers_dir, spec_only_dir)
    assert {file.name for file in spec_only_dir.iterdir()} == {
        "question_tower.onnx",
        "question_tower.onnx.data",
        "document_tower.onnx",
        "document_tower.onnx.data",
        "retriever.json",
    }
