import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmrag_batch.bundle import read_retriever_spec
from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.parts import check_encoders, read_spec
from mmrag_batch.settings import DEMO_BUNDLE
from mmrag_batch.train import ranking, retriever
from mmrag_batch.train.data import EmbeddedTable
from mmrag_batch.train.ranking import rank, ranks, recall_gain
from mmrag_batch.train.retriever import split, train_retriever
from mmrag_batch.train.settings import RetrieverConfig
from mmrag_batch.train.splits import Column
from mmrag_batch.train.towers import Towers, TowersConfig, load_towers


def texts_only(
    questions: Tensor, documents: Tensor, counts: Sequence[int], relevant: Tensor
) -> EmbeddedTable:
    """A table whose questions (Q, D) and documents (N, D) have a text embedding only."""
    absent = torch.zeros(1, questions.shape[1])
    vectors = torch.cat([absent, questions, documents]).numpy()
    rows = torch.arange(1, len(vectors))
    sides = torch.stack([torch.zeros_like(rows), rows], dim=1)
    sizes = torch.tensor(counts)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    helpful = torch.zeros(len(sizes)).scatter_add_(0, owner, relevant.float())
    return EmbeddedTable(
        vectors=vectors,
        questions=sides[: len(questions)],
        documents=sides[len(questions) :],
        counts=sizes,
        shares=relevant.float() / helpful[owner],
        numbers=torch.arange(len(sizes)),
    )


def separable(count: int) -> EmbeddedTable:
    """Questions with five documents each, of which the relevant one points up in dimension 0."""
    random = torch.Generator().manual_seed(0)
    relevant = torch.zeros(count, 5, dtype=torch.bool)
    relevant[torch.arange(count), torch.randint(5, (count,), generator=random)] = True
    relevant = relevant.flatten()
    documents = torch.randn(count * 5, 12, generator=random)
    documents[:, 0] = torch.where(relevant, 1.5, -1.5)
    questions = torch.randn(count, 12, generator=random)
    questions[:, 0] = 0
    return texts_only(
        F.normalize(questions, dim=1), F.normalize(documents, dim=1), [5] * count, relevant
    )


def at(*cosines: float) -> Tensor:
    """(N, 2): unit vectors with these cosines to (1, 0)."""
    return torch.tensor([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines])


def test_ranks_are_those_of_the_best_relevant_document() -> None:
    """Untrained towers pass a lone text embedding on, so the cosines are given by hand."""
    table = texts_only(
        torch.tensor([[1.0, 0.0]]).repeat(3, 1),
        at(0.9, 0.5, 0.1, 0.8, 0.9, 0.2, 0.3, 0.7, 0.7, 0.1),
        [3, 4, 3],
        torch.tensor([True, False, True, False, False, True, True, True, False, False]),
    )
    found = rank(Towers(TowersConfig(2, 4)), table)
    assert found.recall_at_1 == pytest.approx(2 / 3)  # ranks 1, 3, and 1 where two are equal
    assert found.mrr == pytest.approx((1 + 1 / 3 + 1) / 3)


def test_the_gain_is_that_of_the_same_questions_with_an_interval() -> None:
    before = torch.tensor([1] * 40 + [3] * 60)
    after = torch.tensor([1] * 35 + [2] * 5 + [1] * 30 + [3] * 30)
    gain = recall_gain(before, after)
    assert gain.value == pytest.approx(0.25)
    spread = 1.96 * (0.35 - 0.25**2) ** 0.5 / 10  # of 30 won and 5 lost, by the normal law
    assert gain.low == pytest.approx(0.25 - spread, abs=0.02)
    assert gain.high == pytest.approx(0.25 + spread, abs=0.02)


def test_questions_that_repeat_each_other_count_once_in_the_interval() -> None:
    before = torch.tensor([1] * 10 + [3] * 30)
    after = torch.tensor([1] * 20 + [3] * 20)
    wide = recall_gain(before.repeat(8), after.repeat(8), torch.arange(40).repeat(8))
    assert wide == recall_gain(before, after)
    narrow = recall_gain(before.repeat(8), after.repeat(8))
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_labels_at_random_teach_nothing_of_questions_that_come_again(
    tiny_retriever_dir: Path, tmp_path: Path
) -> None:
    """Each of 30 questions comes six times. Learnt by heart, it would always be right."""
    random = Random(0)
    rows = []
    for number in range(30):
        documents = [f"Note {random.random()}" for _ in range(4)]
        relevant = random.choice(documents)
        for order in (random.sample(documents, 4) for _ in range(6)):
            cells = json.dumps(order), json.dumps([order.index(relevant)])
            rows.append((f"Question {number}?", *cells))
    table = tmp_path / "table.csv"
    frame = pd.DataFrame(rows, columns=["question_text", "documents", "relevant"])
    frame.sample(frac=1, random_state=0).to_csv(table, index=False)
    settings = {"epochs": 40, "patience": 40, "learning_rate": 1e-2, "hidden_size": 96}
    train_retriever(config(tiny_retriever_dir, table, tmp_path / "out", **settings))
    best = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert best["recall_gain"] < 0.5
    assert best["low"] <= 0.1


def test_ranks_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    towers, table = Towers(TowersConfig(12, 8)), separable(30)
    expected = ranks(towers, table)
    monkeypatch.setattr(ranking, "CHUNK", 7)
    assert torch.equal(ranks(towers, table), expected)
    assert len(expected.unique()) > 2  # type: ignore[no-untyped-call]


def test_a_split_is_disjoint_and_whole() -> None:
    table = separable(20)
    held_out, trained = split(table, 0.25, seed=1)
    assert (len(held_out.questions), len(trained.questions)) == (5, 15)
    both = torch.cat([held_out.questions, trained.questions])
    assert sorted(both.tolist()) == sorted(table.questions.tolist())
    assert len(held_out.documents) + len(trained.documents) == len(table.documents)


def test_questions_that_share_anything_are_held_out_together() -> None:
    """Each question comes three times, each time with its documents in another order."""
    table = separable(40)
    again = table.take(torch.arange(40).repeat(3))
    again.questions[40:, 1] += again.documents.max()  # another question, the same documents
    held_out, trained = split(again, 0.25, seed=1)
    assert len(held_out.questions) == 30
    assert set(held_out.numbers.tolist()).isdisjoint(trained.numbers.tolist())


def test_questions_are_held_out_by_a_column() -> None:
    table = separable(20)
    by = Column("kind", [f"kind {n % 4}" for n in range(20)])
    held_out, trained = split(table, 0.25, seed=1, by=by)
    assert len(set((held_out.numbers % 4).tolist())) == 1
    assert len(held_out.questions) == 5
    assert not set((trained.numbers % 4).tolist()) & set((held_out.numbers % 4).tolist())


@pytest.mark.parametrize("held_out", [0.0, 0.01, 1.0])
def test_a_split_with_an_empty_side_is_refused(held_out: float) -> None:
    with pytest.raises(InputError, match="20 questions"):
        split(separable(20), held_out, seed=1)


def config(graphs: Path, table: Path, out: Path, **others: Any) -> RetrieverConfig:
    return RetrieverConfig(
        encoders=graphs,
        table=table,
        out=out,
        held_out=0.3,
        **{"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "hidden_size": 8, **others},
    )


def test_a_run_keeps_the_best_towers(
    tiny_retriever_dir: Path,
    demo_table: Path,
    tmp_path: Path,
    steps: dict[str, tuple[int, int | None]],
) -> None:
    model = train_retriever(config(tiny_retriever_dir, demo_table, tmp_path))
    assert model == tmp_path / "model"
    curves = (tmp_path / "curves.svg").read_text()
    assert all(f">{name}: " in curves for name in ("loss", "recall_at_1", "mrr"))
    assert load_towers(model).config == TowersConfig(embedding_size=24, hidden_size=8)
    check_encoders(model, tiny_retriever_dir, read_retriever_spec(tiny_retriever_dir))
    with pytest.raises(ConfigError, match="other encoders"):
        check_encoders(model, DEMO_BUNDLE / "retriever", read_spec(DEMO_BUNDLE / "retriever"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    *epochs, best = lines
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    assert best["best_mrr"] == max(line["mrr"] for line in epochs)
    assert best["low"] <= best["recall_gain"] <= best["high"]
    gained = best["best_recall_at_1"] - epochs[0]["recall_at_1"]
    assert best["recall_gain"] == pytest.approx(gained, abs=1e-3)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert steps["Embedding"] == (40, 40)
    for name in ("Hashing pictures", f"Hashing {tiny_retriever_dir}", "Training"):
        done, total = steps[name]
        assert done == total != 0, name


def test_a_second_run_encodes_nothing(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"embedding_cache": tmp_path / "cache"}
    first = train_retriever(config(tiny_retriever_dir, demo_table, tmp_path / "1", **shared))
    monkeypatch.delattr("mmrag_batch.retrieval.encoder.Encoder.encode_texts")
    monkeypatch.setattr(
        "mmrag_batch.retrieval.encoder.Encoder.encode_images", lambda self, images: list(images)
    )
    second = train_retriever(config(tiny_retriever_dir, demo_table, tmp_path / "2", **shared))
    weights = [path / "model.safetensors" for path in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def withheld(table: Path) -> Path:
    """The table without its column `relevant`, beside it."""
    out = table.with_name("withheld.csv")
    pd.read_csv(table, dtype=str).drop(columns="relevant").to_csv(out, index=False)
    return out


def test_towers_are_trained_by_the_likelihoods_of_a_generator(
    tiny_retriever_dir: Path,
    demo_table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: dict[str, tuple[int, int | None]],
) -> None:
    settings = {
        "supervision": "likelihood",
        "generator": DEMO_BUNDLE / "generator",
        "scoring": "text",
        "max_images": 1,
        "max_prompt_tokens": 1024,
        "batch_size": 4,
    }
    table = withheld(demo_table)
    model = train_retriever(config(tiny_retriever_dir, table, tmp_path, **settings))
    assert (model / "model.safetensors").is_file()
    assert steps["Likelihoods"] == (40, 40)
    measured = (tmp_path / "likelihoods.jsonl").read_text()
    assert len(measured.splitlines()) > 20
    monkeypatch.delattr("mmrag_batch.generation.answerer.Answerer._request")  # none is asked again
    again = config(tiny_retriever_dir, table, tmp_path, **{**settings, "batch_size": 5})
    train_retriever(again)
    assert (tmp_path / "likelihoods.jsonl").read_text() == measured


def test_towers_are_trained_by_right_answers(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    table = withheld(demo_table)
    with pytest.raises(InputError, match="another `supervision`"):
        train_retriever(config(tiny_retriever_dir, table, tmp_path / "1"))
    by_answer = config(tiny_retriever_dir, table, tmp_path / "2", supervision="answer")
    assert (train_retriever(by_answer) / "model.safetensors").is_file()


def test_likelihoods_need_a_generator(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="generator"):
        train_retriever(config(tiny_retriever_dir, demo_table, tmp_path, supervision="likelihood"))


@pytest.fixture
def unfinished(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RetrieverConfig:
    """A run, on files of its own, that was killed before its towers were written."""
    table = shutil.copytree(demo_table.parent, tmp_path / "world") / demo_table.name
    graphs = shutil.copytree(tiny_retriever_dir, tmp_path / "graphs")
    settings = config(graphs, table, tmp_path / "out", embedding_cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(retriever, "save_towers", killed)
        with pytest.raises(KeyboardInterrupt):
            train_retriever(settings)
    return settings


def test_an_unfinished_run_with_other_settings_is_refused(unfinished: RetrieverConfig) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 8 -> 4.*checkpoint\.pt"):
        train_retriever(replace(unfinished, batch_size=4))


def test_l05_a_run_goes_on_with_what_it_began_with_alone(unfinished: RetrieverConfig) -> None:
    inputs = {
        unfinished.encoders: unfinished.encoders / "text_encoder.onnx",
        unfinished.table: unfinished.table,
        Path(f"pictures of {unfinished.table}"): next(unfinished.table.parent.rglob("*.jpg")),
    }
    for name, file in inputs.items():
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        with pytest.raises(ConfigError, match=rf"inputs \({re.escape(str(name))}: changed[;)]"):
            train_retriever(unfinished)
        file.write_bytes(before)
    (unfinished.encoders / "question_tower.onnx").unlink()  # is none of its inputs
    assert (train_retriever(unfinished) / "model.safetensors").is_file()


def test_the_held_out_questions_are_of_another_kind(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no column 'kid'\. Did you mean 'kind'"):
        train_retriever(config(tiny_retriever_dir, demo_table, tmp_path, held_out_by="kid"))
    assert not list(tmp_path.iterdir())
    settings = config(tiny_retriever_dir, demo_table, tmp_path, held_out_by="kind", batch_size=4)
    train_retriever(settings)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    kinds = pd.read_csv(demo_table).query("relevant != '[]'").kind.value_counts()
    assert first["held_out"] in kinds.to_list()
    assert first["questions"] == kinds.sum() - first["held_out"]


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_batch_larger_than_the_table_is_refused(
    tiny_retriever_dir: Path, demo_table: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="batch_size"):
        train_retriever(config(tiny_retriever_dir, demo_table, tmp_path, batch_size=99))
