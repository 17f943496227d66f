"""Towers learn from a corpus: what `relevant` names there, against the nearest that does not."""

import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrag_batch.bundle import write_retriever_spec
from mmrag_batch.cli.app import app
from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.parts import read_spec
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.embedder import Embedding
from mmrag_batch.retrieval.encoder import Encoder
from mmrag_batch.retrieval.retriever import Towers
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train import retriever
from mmrag_batch.train.corpus import HELD_OUT, CorpusDocuments, embed_with_negatives
from mmrag_batch.train.data import EmbeddedTable
from mmrag_batch.train.retriever import plan_retriever, read_rows, split, train_retriever
from mmrag_batch.train.settings import RetrieverConfig
from tests.run.parts import with_another_tower

TEXTS = {f"d{n}": f"The red star of {n} costs {n} coins." for n in range(20)}
SAME = {"twin": TEXTS["d3"]}
"""Has the contents of a document that helps."""


def index(folder: Path, *options: object) -> None:
    docs = ["index", folder / "docs" / "docs.csv", folder / "corpus", *options]
    done = CliRunner().invoke(app, [str(word) for word in docs])
    assert done.exit_code == 0, done.output


def write_docs(folder: Path, texts: dict[str, str]) -> None:
    with (folder / "docs" / "docs.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "text", "image"])
        table.writerows([name, text, ""] for name, text in texts.items())
        table.writerow(["shown", "", "red.png"])


def write_rows(folder: Path, rows: Sequence[tuple[str, list[str]]]) -> None:
    lines = [{"question_text": text, "relevant": relevant} for text, relevant in rows]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus whose pictures lie beside its own table, and questions elsewhere that ask of it."""
    (tmp_path / "docs").mkdir()
    Image.new("RGB", (48, 48), "red").save(tmp_path / "docs" / "red.png")
    write_docs(tmp_path, TEXTS | SAME)
    index(tmp_path)
    rows = [(f"What does the red star of {n} cost?", [f"d{n}"]) for n in range(20)]
    write_rows(tmp_path, [*rows, ("What does the red star of 3 cost?", ["corpus:shown"])])
    return tmp_path


def config(folder: Path, out: str = "out", **others: object) -> RetrieverConfig:
    known = RetrieverConfig(
        encoders=Path("demo"),
        table=folder / "in.jsonl",
        out=folder / out,
        corpus=folder / "corpus",
        hard_negatives=4,
        held_out=0.3,
        epochs=2,
        batch_size=4,
        learning_rate=1e-3,
        hidden_size=8,
    )
    return replace(known, **others)  # type: ignore[arg-type]


def embedded(asked: RetrieverConfig) -> tuple[EmbeddedTable, EmbeddedTable]:
    asked.out.mkdir(exist_ok=True)
    asked = replace(asked, encoders=DEMO_BUNDLE / "retriever")
    assert asked.corpus is not None
    models = Corpus(asked.corpus).manifest.models.encoders
    return embed_with_negatives(
        asked,
        read_spec(asked.encoders),
        asked.corpus / "embeddings" / models,
        read_rows,
        lambda table: split(table, 0.3, seed=1),
    )


def test_negatives_are_the_nearest_that_do_not_help(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined: dict[int, list[int]] = {}
    mine = CorpusDocuments.mine

    def kept(*asked: object) -> dict[int, list[int]]:
        mined.update(mine(*asked))  # type: ignore[arg-type]
        return mined

    monkeypatch.setattr(CorpusDocuments, "mine", kept)
    held_out, trained = embedded(config(folder))
    corpus = Corpus(folder / "corpus")
    numbers = trained.numbers.tolist()
    assert set(mined) == {*numbers, *held_out.numbers.tolist()} == set(range(21))
    assert {len(mined[number]) for number in numbers} == {4}
    assert {len(mined[one]) for one in held_out.numbers.tolist()} <= {19, 21}  # but what helps
    ids = {number: [corpus.read(one)["id"] for one in places] for number, places in mined.items()}
    assert all(f"d{number}" not in names for number, names in ids.items())
    for number in (3, 20):  # which ask the same, and of which one was told each
        assert not {"d3", "shown", "twin"} & set(ids[number])
    everything = [corpus.read(place) for place in range(len(corpus))]
    towers = Towers(DEMO_BUNDLE / "retriever", device="cpu")
    vectors = np.concatenate([block.vectors for block in corpus._blocks()]).astype(np.float32)
    modalities, present = trained.embeddings(trained.questions)
    for at, number in enumerate(numbers):
        question = Embedding(modalities[at].numpy(), present[at].numpy())
        scores = vectors @ towers.questions([question])[0]
        helps = {3: {"d3", "shown", "twin"}, 20: {"d3", "shown", "twin"}}.get(
            number, {f"d{number}"}
        )
        best = [everything[one]["id"] for one in np.argsort(-scores)]
        near = [one for one in best if one not in helps][:4]
        assert {told(one) for one in ids[number]} == {told(one) for one in near}


def told(name: str) -> str:
    """What a document says: equal ones are equally near."""
    return (TEXTS | SAME).get(name, name)


def test_each_question_has_what_helps_it_and_its_negatives(folder: Path) -> None:
    held_out, trained = embedded(config(folder))
    assert set(trained.counts.tolist()) == {5}  # one that helps, four that do not
    assert min(held_out.counts.tolist()) > 15 < HELD_OUT
    assert trained.relevant.sum() == len(trained.questions)
    _, alone = embedded(config(folder, hard_negatives=0))
    assert set(alone.counts.tolist()) == {1}


def test_no_document_is_encoded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    texts = Encoder.encode_texts

    def encode(encoder: Encoder, batch: list[str]) -> object:
        given.extend(batch)
        return texts(encoder, batch)

    monkeypatch.setattr(Encoder, "encode_texts", encode)
    images: list[object] = []

    def look(_: Encoder, batch: Iterable[object]) -> list[object]:
        images.extend(batch)
        return []

    monkeypatch.setattr(Encoder, "encode_images", look)
    model = train_retriever(config(folder))
    assert (model / "model.safetensors").is_file()
    assert sorted(given) == sorted({f"What does the red star of {n} cost?" for n in range(20)})
    assert images == []
    assert not (folder / "out" / "embeddings").exists()


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_was_killed_ends_as_it_would_have_and_on_its_own_corpus_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retriever, "save_towers", killed)
        with pytest.raises(KeyboardInterrupt):
            train_retriever(config(folder))
    before = (folder / "corpus" / "corpus.json").read_bytes()
    write_docs(folder, TEXTS | {"new": "The red star of 99 costs nothing."})
    index(folder)
    with pytest.raises(ConfigError, match=r"inputs \(.*corpus: changed"):
        train_retriever(config(folder))
    write_docs(folder, TEXTS | SAME)
    index(folder)
    version = json.loads((folder / "corpus" / "corpus.json").read_bytes())["version"]
    assert version == json.loads(before)["version"]
    parts = [train_retriever(config(folder)), train_retriever(config(folder, "other"))]
    weights = [part / "model.safetensors" for part in parts]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    other = train_retriever(config(folder, "without", hard_negatives=0)) / "model.safetensors"
    assert other.read_bytes() != weights[0].read_bytes()


def test_a_corpus_of_other_models_is_refused_by_name(folder: Path) -> None:
    bundle = with_another_tower(folder / "bundle")
    with pytest.raises(ConfigError, match=r"corpus: .*corpus was made with other models.*--bundle"):
        train_retriever(config(folder, encoders=bundle))


def test_encoders_that_are_no_bundle_are_refused(folder: Path) -> None:
    graphs = shutil.copytree(DEMO_BUNDLE / "retriever", folder / "graphs")
    write_retriever_spec(graphs, read_spec(DEMO_BUNDLE / "retriever"))
    with pytest.raises(ConfigError, match="must be the bundle that"):
        plan_retriever(config(folder, encoders=graphs))
    with pytest.raises(ConfigError, match="`supervision: answer`"):
        plan_retriever(config(folder, supervision="answer"))


def test_what_is_relevant_and_not_in_the_corpus_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "21 questions" in plan_retriever(config(folder))
    rows = [(f"What does the red star of {n} cost?", [f"d{n}"]) for n in range(20)]
    write_rows(folder, [*rows, ("What else?", ["gone"])])
    assert "20 questions" in plan_retriever(config(folder))
    assert "1 of 21 relevant documents are not in the corpus: corpus:gone." in caplog.text
    write_rows(folder, [("What else?", ["gone"])])
    with pytest.raises(InputError, match="`relevant` names documents by their `id` there"):
        plan_retriever(config(folder))
