"""`predict --corpus`: rows share documents, and a corpus that changes costs what it changes."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.bundle import Bundle
from mmrag_batch.errors import ExitCode
from mmrag_batch.factory import load_bundle
from mmrag_batch.retrieval import corpus_source
from mmrag_batch.run.answers import Kept
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.settings import PredictSettings
from tests.run.corpora import COSTS, answer, call, evidence, index, write_rows
from tests.run.corpora import folder as folder  # a fixture
from tests.run.parts import with_another_tower


def predict(
    folder: Path, *options: object, output: str = "out.csv", corpus: str = "corpus"
) -> tuple[list[dict[str, str]], list[int]]:
    return answer(folder, folder / corpus, *options, output=output)


def test_rows_without_documents_get_those_of_the_corpus(folder: Path) -> None:
    rows, asked = predict(folder)
    assert asked == list(range(8))
    for row in rows:
        assert len(evidence(row)) == 3
        assert all(name.removeprefix("corpus:") in COSTS for name in evidence(row))


def test_a_rows_own_documents_and_the_corpus_are_one_ranking(folder: Path) -> None:
    """Equal documents score equally, and the row's own come first; evidence says which is which."""
    own = ["The red star of 5 costs 5 coins.", "A blue cube."]
    write_rows(folder, [{"question_text": "What does the red star of 5 cost?", "documents": own}])
    (row,), _ = predict(folder, "--top-k", 14)
    items = json.loads(row["evidence"])
    assert [item["score"] for item in items] == sorted((i["score"] for i in items), reverse=True)
    assert len(items) == 14
    scores = {item["id"]: item["score"] for item in items}
    assert scores["0"] == scores["corpus:star 5"]
    names = [item["id"] for item in items]
    assert names.index("0") + 1 == names.index("corpus:star 5")


def test_an_own_document_that_is_called_as_one_of_a_corpus_is_an_error_of_its_row(
    folder: Path,
) -> None:
    documents = [{"id": "corpus:star 5", "text": "A lie."}]
    broken = {"question_text": "What?", "documents": documents}
    write_rows(folder, [broken, {"question_text": "What else?"}])
    code, said = call(
        *("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted"),
        *("--corpus", folder / "corpus"),
    )
    assert (code, "bad_documents" in said) == (3, True)
    with (folder / "out.csv").open(newline="") as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["error", "ok"]


def test_the_same_corpus_costs_nothing(folder: Path) -> None:
    predict(folder)
    code, said = call(
        "predict",
        folder / "in.jsonl",
        folder / "out.csv",
        "--engine",
        "scripted",
        "--corpus",
        folder / "corpus",
    )
    assert (code, "nothing to do" in said) == (0, True)
    index(folder, COSTS)  # made again, to the same
    assert predict(folder)[1] == []


def test_a_corpus_that_grew_asks_only_the_rows_with_other_evidence(folder: Path) -> None:
    before, _ = predict(folder)
    grown = COSTS | {"new": "What does the red star of 5 cost? The red star of 5 costs 5 coins."}
    index(folder, grown)
    after, asked = predict(folder)
    changed = [
        n for n, pair in enumerate(zip(before, after)) if evidence(pair[0]) != evidence(pair[1])
    ]
    assert 0 < len(changed) < 8
    assert asked == changed
    _, all_asked = predict(folder, output="fresh.csv")
    assert all_asked == list(range(8))
    assert (folder / "out.csv").read_bytes() == (folder / "fresh.csv").read_bytes()
    index(folder, COSTS)  # and back again: every answer is there
    assert predict(folder) == (before, [])


def test_a_document_that_says_something_else_under_its_id_asks_its_rows(folder: Path) -> None:
    before, _ = predict(folder)
    name = evidence(before[0])[0].removeprefix("corpus:")
    index(folder, COSTS | {name: COSTS[name] + " It really does."})
    _, asked = predict(folder)
    shown = [number for number, row in enumerate(before) if f"corpus:{name}" in evidence(row)]
    assert set(shown) <= set(asked)


def test_rows_that_are_new_are_asked_and_the_others_kept(folder: Path) -> None:
    predict(folder)
    index(folder, COSTS | {"far": "Nobody asks about llamas."})
    questions = [f"What does the red star of {n} cost?" for n in (11, *range(2, 10), 12)]
    write_rows(folder, [{"question_text": text} for text in questions])
    assert predict(folder)[1] == [0, 9]


def test_what_was_searched_is_searched_again_after_a_run_that_died(folder: Path) -> None:
    """Answers of before are found though the first run on the new corpus never finished."""
    predict(folder)
    index(folder, COSTS | {"far": "Nobody asks about llamas."})
    code, said = call(
        *("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted"),
        *("--corpus", folder / "corpus", "--bundle", folder / "nowhere"),
    )
    assert code == 66, said
    assert predict(folder)[1] == []


def test_a_search_that_was_cut_short_is_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = predict(folder)
    index(folder, COSTS | {"far": "Nobody asks about llamas."})
    kept: list[bytes] = []
    keep = AnswerStore.keep

    def die(store: AnswerStore, key: bytes, answer: Kept) -> None:
        kept.append(key)
        if len(kept) == 4:
            raise KeyboardInterrupt
        keep(store, key, answer)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerStore, "keep", die)
        words = ("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted")
        assert call(*words, "--corpus", folder / "corpus")[0] == 130
    assert predict(folder) == (before, [])


def test_a_corpus_that_changes_while_a_run_begins_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(settings: PredictSettings) -> Bundle:
        index(folder, COSTS | {"new": "The red star of 5 costs 5 coins, they say."})
        return load_bundle(settings)

    with monkeypatch.context() as patch:
        patch.setattr("mmrag_batch.run.predict.load_bundle", change)
        words = ("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted")
        code, said = call(*words, "--corpus", folder / "corpus")
    assert (code, "Run the same command again" in said) == (65, True)
    assert predict(folder)[1] == list(range(8))


def test_many_rows_share_a_pass_over_a_large_corpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(folder)
    monkeypatch.setattr(corpus_source, "LARGE", 2)
    monkeypatch.setattr(corpus_source, "TOGETHER", 5)
    predict(folder, output="together.csv")
    assert (folder / "together.csv").read_bytes() == (folder / "out.csv").read_bytes()


def test_pictures_and_corpus_can_be_moved_together(tmp_path: Path) -> None:
    (tmp_path / "here" / "docs").mkdir(parents=True)
    Image.new("RGB", (60, 60), "red").save(tmp_path / "here" / "docs" / "red.png")
    assert call("index", tmp_path / "here/docs", tmp_path / "here/corpus")[0] == 0
    (tmp_path / "here").rename(tmp_path / "there")
    write_rows(tmp_path, [{"question_text": "What is it?"}])
    (row,), _ = predict(tmp_path, corpus="there/corpus")
    assert (row["status"], evidence(row)) == ("ok", ["corpus:red.png"])


def test_other_settings_are_refused_and_another_corpus_is_not(folder: Path) -> None:
    predict(folder)
    code, said = call("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted")
    assert code == 78
    assert "candidates: was corpus, is row" in said
    other = {"x": "A llama."}
    index(folder, other, out="other")
    rows, asked = predict(folder, corpus="other")
    assert asked == list(range(8))
    assert {name for row in rows for name in evidence(row)} == {"corpus:x"}


def test_answers_of_two_corpora_share_a_store_and_never_each_other(folder: Path) -> None:
    index(folder, {"x": "A llama."}, out="other")
    store = ("--store", folder / "shared")
    here, _ = predict(folder, *store, output="here.csv")
    there, asked = predict(folder, *store, output="there.csv", corpus="other")
    assert asked == list(range(8))
    again, asked = predict(folder, *store, output="again.csv")
    assert (again, asked) == (here, [])
    assert [evidence(row) for row in there] == [["corpus:x"]] * 8


def test_a_corpus_of_other_models_is_refused_before_a_model_is_loaded(folder: Path) -> None:
    bundle = with_another_tower(folder / "bundle")
    words = ("predict", folder / "in.jsonl", folder / "out.csv", "--corpus", folder / "corpus")
    code, said = call(*words, "--bundle", bundle)
    assert (code, "mmrag-batch index DOCS" in said) == (78, True)
    assert call(*words[:-1], folder / "nowhere")[0] == 66
    assert call(*words[:3], "--candidates", "corpus")[0] == 78


def test_a_picture_that_was_changed_since_it_was_indexed_is_left_out_and_told(
    tmp_path: Path,
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("red", "blue", "green"):
        Image.new("RGB", (60, 60), name).save(docs / f"{name}.png")
    assert call("index", docs, tmp_path / "corpus")[0] == 0
    write_rows(tmp_path, [{"question_text": "What is it?"}])
    (row,), _ = predict(tmp_path, "--top-k", 3)
    assert (row["status"], len(evidence(row))) == ("ok", 3)
    Image.new("RGB", (60, 60), "black").save(docs / "red.png")
    (row,), asked = predict(tmp_path, "--top-k", 3, output="other.csv")
    assert (row["status"], asked) == ("degraded", [0])
    assert sorted(evidence(row)) == ["corpus:blue.png", "corpus:green.png"]
    assert "image_changed" in row["error"]
    assert "mmrag-batch index" in row["error"]


def test_shards_share_a_corpus(folder: Path) -> None:
    predict(folder, output="whole.csv")
    for shard in range(3):
        code, said = call(
            *("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted"),
            *("--corpus", folder / "corpus", "--shard", f"{shard}/3"),
        )
        assert code == 0, said
    assert call("merge", folder / "out.csv")[0] == 0
    assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def test_relevant_names_documents_of_the_corpus(folder: Path) -> None:
    rows = [
        {"question_text": f"What does the red star of {n} cost?", "relevant": [f"star {n}"]}
        for n in range(2, 10)
    ]
    own = {"documents": ["A red thing."], "relevant": ["corpus:star 9"]}
    write_rows(folder, [*rows, {"question_text": "What does the red star of 9 cost?", **own}])
    predict(folder)
    code, said = call("evaluate", folder / "out.csv", "--depth", 12, "--json")
    assert code == 0, said
    figures, _ = json.JSONDecoder().raw_decode(said, said.index("{"))  # the log is around it
    kept, candidates = figures["overall"]["retrieval"], figures["candidates"]
    assert (kept["rows"], kept["depth"]) == (9, 3)
    assert (candidates["rows"], candidates["depth"]) == (9, 12)
    assert candidates["recall"]["1"] == kept["recall"]["1"]
    assert candidates["recall"]["12"] >= kept["recall"]["3"]
    assert candidates["recall"]["12"] > 0.9
    said = call("evaluate", folder / "out.csv", "--depth", 12)[1]
    assert re.search(r"candidates: recall@1 0\.\d+, recall@12 (0|1)\.\d+", said)
    assert call("validate", folder / "in.jsonl")[0] == 0


def test_a_row_is_explained_with_documents_of_the_corpus(folder: Path) -> None:
    rows, _ = predict(folder)
    code, said = call("explain", folder / "out.csv", 3)
    assert code == 0, said
    for name in evidence(rows[3]):
        assert f"kept        {name}: The red star" in said
    assert call("report", folder / "out.csv", "--out", folder / "page.html")[0] == 0
    assert "corpus:star" in (folder / "page.html").read_text()


def test_of_ablations_only_the_one_without_evidence_can_be_asked(tmp_path: Path) -> None:
    index(tmp_path, COSTS)
    write_rows(tmp_path, [{"question_text": f"Is it {n}?", "label": "yes"} for n in range(4)])
    predict(tmp_path)
    code, said = call("evaluate", tmp_path / "out.csv", "--ablate", "evidence,oracle")
    assert (code, "--ablate oracle: documents of a corpus cannot be" in said) == (78, True)
    code, said = call("evaluate", tmp_path / "out.csv", "--ablate", "evidence")
    assert code == 0, said
    assert re.search(r"^no evidence +4 ", said, re.M)


def test_an_approximate_index_finds_here_what_the_exact_search_does(folder: Path) -> None:
    """The rows are searched again, for another search may find other documents; none is asked."""
    documents = {f"d{n}": f"The red star of {n} costs {n % 90} coins." for n in range(1, 400)}
    index(folder, documents)
    exactly, asked = predict(folder)
    assert asked == list(range(8))
    said = index(folder, documents, "--approximate")
    assert re.search(r"searched approximately; of the 50 nearest documents [\d.]+% were", said), (
        said
    )
    approximately, asked = predict(folder)
    assert approximately == exactly
    assert asked == []
    grown = documents | {f"e{n}": f"The red star of {n} costs {n} coins here." for n in range(9)}
    index(folder, grown, "--approximate")
    approximately, _ = predict(folder)
    assert any("corpus:e" in row["evidence"] for row in approximately)
    index(folder, grown)
    assert predict(folder) == (approximately, [])


def test_without_faiss_an_approximate_corpus_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(folder, COSTS, "--approximate")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for command in (
        ("index", folder / "docs.csv", folder / "corpus", "--approximate"),
        ("predict", folder / "in.jsonl", folder / "out.csv", "--corpus", folder / "corpus"),
    ):
        code, said = call(*command)
        assert code == ExitCode.UNAVAILABLE, said
        assert re.search(r"faiss is not installed. Run `.*pip install .*faiss-cpu", said), said
