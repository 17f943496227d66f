"""What is left of a publication when a store is moved aside or mended."""

import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.run.files import Paths
from mmrag_batch.run.manifest import PUBLISHED, name_temporary, read_manifest
from mmrag_batch.run.mending import salvage
from mmrag_batch.run.store import AnswerStore


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("question_text\nWhat?\nWhy?\n")
    return tmp_path


def predict(output: str, *options: str) -> None:
    words = ["predict", "in.csv", output, "--engine", "scripted", "--device", "cpu", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


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
