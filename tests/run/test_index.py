"""Documents become a corpus, by the command that people type."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.retrieval.corpus import Corpus
from mmrag_batch.retrieval.corpus_manifest import read_corpus
from mmrag_batch.retrieval.encoder import Encoder
from tests.run.parts import with_another_tower

COLUMNS = ("id", "text", "title", "image", "year")


def index(docs: Path, out: Path, *options: str) -> tuple[int, str]:
    """The exit code and what is said."""
    done = CliRunner().invoke(app, ["index", str(docs), str(out), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return path


def facts(count: int) -> list[dict[str, str]]:
    return [
        {"id": f"d{number}", "text": f"The owner of thing {number} is Ada.", "year": "1999"}
        for number in range(count)
    ]


def held(out: Path) -> dict[str, dict[str, object]]:
    corpus = Corpus(out)
    records = [
        segment.record(row)
        for segment in corpus._segments
        for row in range(segment.spec.rows)
        if segment.alive[row]
    ]
    return {record["id"]: record for record in records}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the encoders were given."""
    given: list[object] = []
    texts, images = Encoder.encode_texts, Encoder.encode_images

    def encode_texts(self: Encoder, items: Sequence[str]) -> object:
        given.extend(items)
        return texts(self, items)

    def encode_images(self: Encoder, items: object) -> object:
        some = list(items)  # type: ignore[call-overload]
        given.extend(some)
        return images(self, some)

    monkeypatch.setattr(Encoder, "encode_texts", encode_texts)
    monkeypatch.setattr(Encoder, "encode_images", encode_images)
    return given


def test_a_table_of_documents_becomes_a_corpus(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    rows = [
        {"id": "a", "text": "It costs 7 coins.", "title": "The red star", "year": "1999"},
        {"id": "b", "image": "red.png", "year": "2001"},
    ]
    code, said = index(write_table(tmp_path / "docs.csv", rows), tmp_path / "corpus")
    assert (code, "2 documents; 2 added" in said) == (0, True), said
    documents = held(tmp_path / "corpus")
    assert documents["a"]["text"] == "The red star\nIt costs 7 coins."
    assert documents["a"]["other"] == {"year": "1999"}
    assert documents["b"]["image"] == "red.png"
    assert len(str(documents["b"]["digest"])) == 64


def test_what_is_new_or_changed_is_encoded_and_nothing_else(
    tmp_path: Path, encoded: list[object]
) -> None:
    docs, out = tmp_path / "docs.csv", tmp_path / "corpus"
    index(write_table(docs, facts(20)), out)
    assert len(encoded) == 20
    rows = [*facts(25)[3:], {"id": "d7b", "text": "Something else."}]
    rows[0] |= {"text": "The owner of thing 3 is Ben."}
    rows[1] |= {"year": "2000"}  # nothing that an encoder reads
    encoded.clear()
    code, said = index(write_table(docs, rows), out)
    assert (code, "23 documents; 8 added or changed, 3 removed" in said) == (0, True), said
    assert len(encoded) == 7
    assert held(out)["d3"]["text"] == "The owner of thing 3 is Ben."
    assert held(out)["d4"]["other"] == {"year": "2000"}
    encoded.clear()
    assert "0 added or changed, 0 removed" in index(docs, out)[1]
    assert encoded == []


def test_an_image_counts_by_its_bytes(tmp_path: Path, encoded: list[object]) -> None:
    docs, out = tmp_path / "docs.csv", tmp_path / "corpus"
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    write_table(docs, [{"id": "a", "image": "a.png"}])
    index(docs, out)
    before = read_corpus(out).version
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    assert "1 added or changed" in index(docs, out)[1]
    assert read_corpus(out).version != before
    assert len(encoded) == 2


def test_documents_that_cannot_be_used_are_told_by_line_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing")
    rows = [
        {"id": "good", "text": "Yes."},
        {"id": "gone", "image": "gone.png"},
        {"id": "torn", "image": "torn.png"},
        {"id": "empty"},
        {"id": "good", "text": "Twice."},
        {"id": "last", "text": "Of all."},
    ]
    code, said = index(write_table(tmp_path / "docs.csv", rows), tmp_path / "corpus")
    assert code == 3
    assert [line.split(": ")[1:3] for line in said.splitlines()[:4]] == [
        ["line 3", "image_missing"],
        ["line 5", "bad_document"],
        ["line 6", "bad_document"],
        ["line 4", "image_corrupt"],
    ]
    assert "4 documents were left out" in said
    assert set(held(tmp_path / "corpus")) == {"good", "last"}


def test_a_folder_of_texts_pictures_and_pdfs_becomes_a_corpus(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "deep" / "a.md").write_text("# A star\nIt is red.")
    Image.new("RGB", (40, 40), "red").save(docs / "b.png")
    pages = [Image.new("RGB", (200, 300), colour) for colour in ("red", "green")]
    pages[0].save(docs / "c.pdf", save_all=True, append_images=pages[1:])
    (docs / "d.txt").write_bytes(b"\xff\xfe\x00")
    (docs / "e.xlsx").write_bytes(b"PK")
    (docs / ".hidden.txt").write_text("not mine to read")
    code, said = index(docs, tmp_path / "corpus")
    assert code == 3
    assert "d.txt: bad_document: not UTF-8" in said
    assert set(held(tmp_path / "corpus")) == {"deep/a.md", "b.png", "c.pdf#page=1", "c.pdf#page=2"}


def test_columns_are_found_by_what_the_table_calls_them(tmp_path: Path) -> None:
    docs = tmp_path / "docs.jsonl"
    docs.write_text(json.dumps({"pid": 7, "body": "A text.", "n": [1, {"a": 2}]}) + "\n")
    code, said = index(docs, tmp_path / "corpus", "--columns", "id=pid,text=body")
    assert code == 0, said
    assert held(tmp_path / "corpus")["7"]["other"] == {"n": [1, {"a": 2}]}
    code, said = index(docs, tmp_path / "other")
    assert code == 65
    assert "--columns" in said
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_read_leaves_the_corpus_as_it_was(tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "corpus"
    docs.mkdir()
    (docs / "a.txt").write_text("A text.")
    index(docs, out)
    (docs / "a.txt").unlink()  # as a folder that is not mounted
    code, said = index(docs, out)
    assert (code, "as it was" in said) == (65, True)
    assert set(held(out)) == {"a.txt"}
    assert index(tmp_path / "nothing", out)[0] == 66


def test_shards_embed_and_the_command_without_one_writes(
    tmp_path: Path, encoded: list[object]
) -> None:
    docs, out = write_table(tmp_path / "docs.csv", facts(11)), tmp_path / "corpus"
    for shard in range(3):
        assert index(docs, out, "--shard", f"{shard}/3")[0] == 0
    assert len(encoded) == 11
    assert not (out / "corpus.json").exists()
    code, said = index(docs, out)
    assert (code, "11 documents" in said) == (0, True)
    assert len(encoded) == 11


def test_a_retrained_tower_needs_no_encoder(tmp_path: Path, encoded: list[object]) -> None:
    docs, out = write_table(tmp_path / "docs.csv", facts(11)), tmp_path / "corpus"
    index(docs, out)
    before = read_corpus(out)
    bundle = with_another_tower(tmp_path / "bundle")
    encoded.clear()
    code, said = index(docs, out, "--bundle", str(bundle))
    assert (code, "11 added or changed" in said) == (0, True), said
    assert encoded == []
    assert read_corpus(out).models != before.models
    assert read_corpus(out).segments != before.segments


def test_one_command_at_a_time_writes_a_corpus(tmp_path: Path) -> None:
    from mmrag_batch.cli.making import alone

    docs = write_table(tmp_path / "docs.csv", facts(2))
    with alone(tmp_path / "corpus"):
        assert index(docs, tmp_path / "corpus")[0] == 11
    assert index(docs, tmp_path / "corpus")[0] == 0


def test_an_output_that_is_no_corpus_is_left_alone(tmp_path: Path) -> None:
    docs, out = write_table(tmp_path / "docs.csv", facts(2)), tmp_path / "corpus"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert index(docs, out)[0] == 73
    assert os.listdir(out) == ["mine.txt"]  # noqa: PTH208
