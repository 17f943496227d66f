"""What is left of a publication when a store is moved aside or mended, or of an older version."""

import hashlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mmrag_batch.bundle import sha256
from mmrag_batch.cli.app import app
from mmrag_batch.run.files import Paths
from mmrag_batch.run.job import NOTE
from mmrag_batch.run.keys import KEY_BYTES
from mmrag_batch.run.manifest import PUBLISHED, name_temporary, read_manifest, write_manifest
from mmrag_batch.run.mending import salvage
from mmrag_batch.run.store import AnswerStore


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("question_text\nWhat?\nWhy?\n")
    return tmp_path


def predict(output: str, *options: str) -> str:
    """What the command says."""
    words = ["predict", "in.csv", output, "--engine", "scripted", "--device", "cpu", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stderr


def test_j10_an_output_is_vouched_for_when_another_begins_their_store_anew() -> None:
    """It appeared, and its run died before it wrote the manifest."""
    predict("b.csv", "--store", "shared.store")
    Path("b.csv.manifest.json").unlink()
    predict("c.csv", "--store", "shared.store", "--fresh")
    assert read_manifest(Paths.of(Path("b.csv"))) is not None
    predict("b.csv", "--store", "shared.store")


def test_j10_nothing_is_left_of_an_output_whose_shard_begins_anew() -> None:
    predict("out.csv")
    with AnswerStore(Path("out.csv.store"), lambda: None) as store:
        half = name_temporary(Paths.of(Path("out.csv")), store)
    half.write_text("half an output")
    predict("out.csv", "--shard", "0/2", "--fresh")
    assert not half.exists()


def test_j10_a_link_in_place_of_another_output_stays_as_it_is() -> None:
    predict("b.csv", "--store", "shared.store")
    Path("b.csv.manifest.json").unlink()
    Path("b.csv").rename("moved.csv")
    Path("b.csv").symlink_to("moved.csv")
    predict("c.csv", "--store", "shared.store")
    predict("c.csv", "--store", "shared.store", "--fresh")
    assert Path("b.csv").is_symlink()
    assert not Path("b.csv.manifest.json").exists()


def test_j11_a_mended_store_knows_what_it_has_published() -> None:
    predict("out.csv")
    with AnswerStore(Path("out.csv.store")) as store:
        name, published = store.read_note("name"), store.read_note(PUBLISHED + "out.csv")
    salvage(Path("out.csv.store"))
    with AnswerStore(Path("out.csv.store")) as store:
        assert store.read_note(PUBLISHED + "out.csv") == published
        assert store.read_note("name") != name


@pytest.mark.parametrize("name", [None, 7, b"\xff", b"published \0.csv"])
def test_j11_a_note_whose_name_is_damaged_is_none(name: object) -> None:
    predict("out.csv")
    with sqlite3.connect("out.csv.store") as sql:
        sql.execute("PRAGMA writable_schema = ON")
        sql.execute("DROP TABLE notes")
        sql.execute("CREATE TABLE notes (name, note)")
        sql.execute("INSERT INTO notes VALUES (?, ?)", (name, b"[{}, 0]"))
    sql.close()
    with AnswerStore(Path("out.csv.store")) as store:
        assert store.note_names() == []
    salvage(Path("out.csv.store"))


def keep_as_before(store: Path) -> None:
    """Make a store what the first format was: an answer in free form stands under another key, and
    nobody knows how probable it is."""
    with AnswerStore(store, lambda: None) as opened:
        settings = opened.read_note(NOTE)["settings"]
        [(key, kept)] = [pair for pair in opened.scan() if len(json.loads(pair[1].answer)) == 7]
        opened.keep(
            hashlib.blake2b(
                json.dumps(["Why?", None, [], []], separators=(",", ":")).encode(),
                key=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest(),
                digest_size=KEY_BYTES,
            ).digest(),
            kept._replace(answer=json.dumps(json.loads(kept.answer)[:5]).encode()),
        )
        opened.commit()
    with sqlite3.connect(store) as sql:
        sql.execute("DELETE FROM answers WHERE key = ?", (key,))
    sql.close()


def test_d05_what_was_kept_in_free_form_without_its_probability_is_asked_again() -> None:
    """Choices are not, and an output without the column is written anew."""
    Path("in.csv").write_text('question_text,answer_choices\nWhat?,"[""a"", ""b""]"\nWhy?,\n')
    predict("out.csv")
    paths, whole = Paths.of(Path("out.csv")), Path("out.csv").read_text()
    keep_as_before(paths.store)
    columns = pd.read_csv("out.csv").drop(columns="confidence_per_token")
    columns.assign(confidence=None).to_csv("out.csv", index=False)
    before = read_manifest(paths)
    assert before is not None
    with AnswerStore(paths.store) as store:
        old = replace(before, sha256=sha256(paths.output), revision=store.revision, format=1)
    write_manifest(paths, old, Path("temporary"))

    assert "1 of them answered before, 1 to ask" in predict("out.csv")
    assert Path("out.csv").read_text() == whole
    assert float(pd.read_csv("out.csv").confidence[1]) > 0
    written = Path("out.csv").stat().st_mtime_ns
    predict("out.csv")
    assert Path("out.csv").stat().st_mtime_ns == written
