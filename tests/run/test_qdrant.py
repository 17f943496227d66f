"""`predict --corpus qdrant+http://...`: a collection that `index` filled, on a server that is
qdrant-client's local mode over HTTP (tests/qdrant_server.py)."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.corpus_world import ask, pool
from mmrag_batch.bundle import Bundle
from mmrag_batch.factory import load_bundle
from mmrag_batch.retrieval import qdrant, qdrant_server
from mmrag_batch.settings import PredictSettings
from mmrag_batch.table.truth import read_labelled_rows
from tests.qdrant_server import Server, serving
from tests.run.corpora import COSTS, answer, call, evidence, index, write_rows
from tests.run.corpora import folder as folder  # a fixture
from tests.run.parts import with_another_tower

SECRET = "a-key-that-nobody-may-see"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(qdrant_server, "FIRST_WAIT", 0.0)
    with serving() as started:
        yield started


def fill(folder: Path, server: Server, name: str = "docs") -> str:
    code, said = call("index", folder / "corpus", f"{server.url}/{name}")
    assert code == 0, said
    return said


def predict(
    folder: Path, corpus: object, *options: object, output: str = "out.csv"
) -> tuple[list[dict[str, str]], list[int]]:
    return answer(folder, corpus, *options, output=output, codes=(0, 3))


def test_a_collection_and_its_corpus_give_the_same_output_to_the_byte(
    tmp_path: Path, demo_table: Path, server: Server
) -> None:
    """The documents of a demo world in one corpus, with their pictures, and many that are equal."""
    rows = list(read_labelled_rows(demo_table))
    root = ("--image-root", demo_table.parent)
    pool(rows, tmp_path / "docs.csv")
    with (tmp_path / "docs.csv").open("a", newline="") as stream:
        csv.writer(stream).writerows((f"same {n}", "The red star is big.", "") for n in range(50))
    assert call("index", tmp_path / "docs.csv", tmp_path / "corpus", *root)[0] in (0, 3)  # lost.jpg
    ask(rows, tmp_path / "bare.csv")
    with (tmp_path / "bare.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(("Is the red star big?", "", '["yes", "no"]', "yes", ""))
    fill(tmp_path, server)
    outputs = []
    for name, corpus in (("disk", tmp_path / "corpus"), ("server", f"{server.url}/docs")):
        words = ("predict", tmp_path / "bare.csv", tmp_path / f"{name}.csv", "--top-k", 5)
        code, said = call(*words, "--engine", "scripted", "--corpus", corpus, *root)
        assert code == 0, said
        outputs.append((tmp_path / f"{name}.csv").read_bytes())
    assert outputs[0] == outputs[1]
    with (tmp_path / "server.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert {len(evidence(row)) for row in written} == {5}
    assert all(name.startswith("corpus:same ") for name in evidence(written[-1]))
    assert any(row["question_image"] for row in written)


def test_a_rows_own_documents_and_the_collection_are_one_ranking(
    folder: Path, server: Server
) -> None:
    fill(folder, server)
    own = ["The red star of 5 costs 5 coins.", "A blue cube."]
    write_rows(folder, [{"question_text": "What does the red star of 5 cost?", "documents": own}])
    (row,), _ = predict(folder, f"{server.url}/docs", "--top-k", 14)
    (other,), _ = predict(folder, folder / "corpus", "--top-k", 14, output="other.csv")
    assert row == other
    scores = {item["id"]: item["score"] for item in json.loads(row["evidence"])}
    assert scores["0"] == scores["corpus:star 5"]
    assert len(scores) == 14


def test_only_what_is_new_is_sent_and_what_is_gone_is_removed(folder: Path, server: Server) -> None:
    assert "12 documents; 12 added or changed, 0 removed" in fill(folder, server)
    asked = len(server.asked)
    assert "12 documents; 0 added or changed, 0 removed" in fill(folder, server)
    assert "PUT /points" not in server.asked[asked:]
    changed = {name: text for name, text in COSTS.items() if name != "star 2"}
    index(folder, changed | {"star 3": "It was sold.", "new": "A llama."})
    assert "12 documents; 2 added or changed, 1 removed" in fill(folder, server)
    rows, _ = predict(folder, f"{server.url}/docs", "--top-k", 12)
    assert {*evidence(rows[0])} == {f"corpus:{name}" for name in (changed | {"new": ""})}


def test_a_collection_that_changed_asks_only_the_rows_with_other_evidence(
    folder: Path, server: Server
) -> None:
    fill(folder, server)
    before, asked = predict(folder, f"{server.url}/docs")
    assert asked == list(range(8))
    assert predict(folder, f"{server.url}/docs") == (before, [])
    index(
        folder,
        COSTS | {"new": "What does the red star of 5 cost? The red star of 5 costs 5 coins."},
    )
    fill(folder, server)
    after, asked = predict(folder, f"{server.url}/docs")
    changed = [n for n, pair in enumerate(zip(before, after)) if pair[0] != pair[1]]
    assert 0 < len(changed) < 8
    assert asked == changed
    fresh, _ = predict(folder, f"{server.url}/docs", output="fresh.csv")
    assert fresh == after


def test_a_point_that_another_program_adds_is_noticed(folder: Path, server: Server) -> None:
    from qdrant_client.models import PointStruct

    fill(folder, server)
    before, _ = predict(folder, f"{server.url}/docs")
    (point,) = server.local.retrieve("docs", [next(iter(ids(server)))], with_vectors=True)
    vector = point.vector
    assert isinstance(vector, list)
    title = {"title": "Stars", "text": "Of all sizes."}  # without an id: called by its point's
    server.local.upsert("docs", [PointStruct(id=7, vector=vector, payload=title)])
    after, asked = predict(folder, f"{server.url}/docs", "--top-k", 3)
    assert len(asked) < 8
    shown = [n for n, row in enumerate(after) if "corpus:7" in evidence(row)]
    assert shown == asked != []
    code, said = call("explain", folder / "out.csv", shown[0])
    assert code == 0, said
    assert "corpus:7: Stars" in said
    assert before != after


def ids(server: Server) -> list[Any]:
    return [point.id for point in server.local.scroll("docs", limit=100)[0]]


def test_a_collection_that_changes_under_a_run_ends_it(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, server)

    def change(settings: PredictSettings) -> Bundle:
        server.local.delete("docs", [ids(server)[0]])
        return load_bundle(settings)

    with monkeypatch.context() as patch:
        patch.setattr("mmrag_batch.run.predict.load_bundle", change)
        words = ("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted")
        code, said = call(*words, "--corpus", f"{server.url}/docs")
    assert (code, "Run the same command again" in said) == (65, True)
    assert predict(folder, f"{server.url}/docs")[1] == list(range(8))


def test_a_collection_that_is_being_filled_is_not_searched(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdrant_client import QdrantClient

    with monkeypatch.context() as patch:
        patch.setattr(QdrantClient, "retrieve", property(lambda _: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            call("index", folder / "corpus", f"{server.url}/docs")
    code, said = refused(folder, f"{server.url}/docs")
    assert (code, "is not filled yet" in said) == (66, True)
    assert "12 added" in fill(folder, server)
    assert predict(folder, f"{server.url}/docs")[1] == list(range(8))


def refused(folder: Path, corpus: object, *options: object) -> tuple[int, str]:
    words = ("predict", folder / "in.jsonl", folder / "out.csv", "--engine", "scripted")
    code, said = call(*words, "--corpus", corpus, *options)
    assert not (folder / "out.csv").exists()
    return code, " ".join(said.split())


def test_what_is_no_collection_of_this_bundle_is_refused_by_name(
    folder: Path, server: Server
) -> None:
    from qdrant_client.models import Distance, VectorParams

    code, said = refused(folder, f"{server.url}/docs")
    assert (code, f"`mmrag-batch index CORPUS {server.url}/docs`" in said) == (66, True)
    fill(folder, server)
    bundle = with_another_tower(folder / "bundle")
    code, said = refused(folder, f"{server.url}/docs", "--bundle", bundle)
    assert (code, "made with other models than those of" in said) == (78, True)
    server.local.create_collection("others", VectorParams(size=128, distance=Distance.DOT))
    code, said = refused(folder, f"{server.url}/others")
    assert (code, "others was not filled by `mmrag-batch index" in said) == (78, True)
    code, said = call("index", folder / "corpus", f"{server.url}/others")
    assert (code, "Name another collection" in " ".join(said.split())) == (73, True)
    assert server.local.count("others").count == 0
    assert refused(folder, "qdrant+http://localhost:6333")[0] == 78
    assert call("predict", folder / "in.jsonl", folder / "x.csv", "--candidates", "qdrant")[0] == 78
    code, said = call("index", folder / "corpus", f"{server.url}/docs", "--shard", "0/2")
    assert (code, "--shard is for making a corpus" in said) == (78, True)
    code, said = call("index", folder / "docs.csv", f"{server.url}/docs")
    assert (code, "docs.csv is no corpus" in said) == (66, True)


def test_a_server_that_is_away_is_an_error_and_one_that_stumbles_is_asked_again(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = refused(folder, "qdrant+http://127.0.0.1:1/docs")
    assert (code, "qdrant+http://127.0.0.1:1/docs cannot be reached: ConnectError" in said) == (
        69,
        True,
    )
    fill(folder, server)
    server.failures = [503] * qdrant_server.TRIES
    code, said = refused(folder, f"{server.url}/docs")
    assert (code, "503 Service Unavailable: out of order" in said) == (69, True)
    server.failures = [400]
    code, said = refused(folder, f"{server.url}/docs")
    assert (code, "does not do what it is asked: 400" in said) == (69, True)
    server.failures = [503, 429, 500]
    assert predict(folder, f"{server.url}/docs")[1] == list(range(8))
    monkeypatch.setattr(qdrant_server, "SECONDS", 1)
    monkeypatch.setattr(qdrant_server, "TRIES", 1)
    (folder / "out.csv").unlink()
    server.seconds = 2.0
    code, said = refused(folder, f"{server.url}/docs", "--fresh")
    assert (code, "ReadTimeout" in said) == (69, True)


def test_the_key_of_a_server_comes_from_the_environment_and_is_never_shown(
    folder: Path, server: Server
) -> None:
    server.key = SECRET
    url = f"{server.url}/docs"
    code, said = call("index", folder / "corpus", url, QDRANT_API_KEY="the-wrong-" + SECRET)
    assert (code, "Set QDRANT_API_KEY" in said) == (77, True)
    assert SECRET not in said
    code, said = call("index", folder / "corpus", url, QDRANT_API_KEY=SECRET)
    assert code == 0, said
    assert "insecure connection" in said
    assert SECRET not in said


def test_pictures_of_a_collection_lie_below_the_image_root_and_are_what_they_were(
    tmp_path: Path, server: Server
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("red", "blue", "green"):
        Image.new("RGB", (60, 60), name).save(docs / f"{name}.png")
    assert call("index", docs, tmp_path / "corpus")[0] == 0
    fill(tmp_path, server)
    write_rows(tmp_path, [{"question_text": "What is it?"}])
    url = f"{server.url}/docs"
    (row,), _ = predict(tmp_path, url, "--top-k", 3, "--image-root", docs)
    assert (row["status"], len(evidence(row))) == ("ok", 3)
    Image.new("RGB", (60, 60), "black").save(docs / "red.png")
    (row,), _ = predict(tmp_path, url, "--top-k", 3, "--image-root", docs, output="other.csv")
    assert row["status"] == "degraded"
    assert sorted(evidence(row)) == ["corpus:blue.png", "corpus:green.png"]
    assert "image_changed" in row["error"]


def test_a_point_that_no_document_was_made_of_is_named(folder: Path, server: Server) -> None:
    fill(folder, server)
    name = ids(server)[0]
    server.local.overwrite_payload("docs", {"id": "x"}, points=[name])
    code, said = refused(folder, f"{server.url}/docs", "--top-k", 12)
    assert (code, f"point {name}: " in said) == (65, True)


def test_without_its_package_a_server_is_not_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    code, said = refused(folder, "qdrant+http://127.0.0.1:1/docs")
    assert (code, "qdrant_client is not installed" in said) == (69, True)
    assert "qdrant-client" in said
    assert qdrant.SLACK > 2 * 2.0**-11  # of a question that a server rounds to 16 bits
