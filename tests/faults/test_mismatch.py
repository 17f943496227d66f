"""Group D: what has changed since the last run.

A changed table costs its changed rows; other settings, an edited output and another format are
refused by name; what changes no answer may change.
"""

import csv
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.bundle import read_manifest, write_manifest
from mmrag_batch.prompt import EVIDENCE_FIRST
from mmrag_batch.settings import DEMO_BUNDLE
from tests.faults.commands import Commands
from tests.faults.harness import (
    DONE,
    ask,
    call,
    contents,
    leave,
    manifest,
    names,
    predict,
    read_rows,
    words,
    write_rows,
    write_table,
)


def begun(commands: Commands, folder: Path, complete: bool) -> None:
    """Leave a run complete, or interrupted."""
    if complete:
        assert predict(folder, "--quiet") == 0
    else:
        leave(commands, folder, 128)


def refused(folder: Path, *options: object) -> str:
    """What a run that is refused says; it has changed nothing."""
    before = contents(folder)
    code, output = call(*words(folder, *options))
    assert code == 78, output
    after = contents(folder)
    # SQLite removes a journal that is void, and a lock that nobody holds is anybody's.
    for name in ("out.csv.store-journal", "out.csv.lock"):
        before.pop(name, None)
        after.pop(name, None)
    assert after == before
    return output


def another(folder: Path, change: Callable[[Path], object]) -> Path:
    """A bundle that is as the demo's, but for a change."""
    bundle = shutil.copytree(DEMO_BUNDLE, folder.parent / "bundle", symlinks=False)
    change(bundle)
    return bundle


def whole(folder: Path) -> bytes:
    """What one run over in.csv as it is now would write."""
    assert predict(folder, "--quiet", output="whole.csv") in (0, 3)
    written = (folder / "whole.csv").read_bytes()
    for file in folder.glob("whole.csv*"):
        file.unlink()
    return written


def change_rows(folder: Path, change: Callable[[list[list[str]]], None]) -> bytes:
    """Change the rows of in.csv; what one run over them would write."""
    with (folder / "in.csv").open(newline="") as stream:
        columns, *rows = csv.reader(stream)
    change(rows)
    write_rows(folder / "in.csv", rows, columns)
    return whole(folder)


@pytest.mark.parametrize("complete", [False, True])
def test_d01_a_row_that_changed_is_asked_and_no_other(
    commands: Commands, folder: Path, complete: bool
) -> None:
    begun(commands, folder, complete)

    def change(rows: list[list[str]]) -> None:
        rows[50][1] = "Is 51 odd?"

    after = change_rows(folder, change)
    code, numbers = ask(folder, "--quiet")
    assert (code, sorted(numbers)) == (0, [50] if complete else [50, *range(128, 200)])
    assert (folder / "out.csv").read_bytes() == after
    assert names(folder) == DONE


@pytest.mark.parametrize("complete", [False, True])
def test_d02_rows_at_the_end_are_asked_and_no_other(
    commands: Commands, folder: Path, expected: dict[int, bytes], complete: bool
) -> None:
    begun(commands, folder, complete)
    write_table(folder / "in.csv", 600)
    code, numbers = ask(folder, "--quiet")
    assert (code, sorted(numbers)) == (0, list(range(200 if complete else 128, 600)))
    assert (folder / "out.csv").read_bytes() == expected[600]


def test_d02_rows_that_go_come_or_move_cost_those_that_are_new(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0

    def change(rows: list[list[str]]) -> None:
        rows.reverse()
        del rows[10:60]
        rows.insert(7, ["new", "Is it new?", '["yes", "no"]', ""])

    after = change_rows(folder, change)
    code, output = call(*words(folder))
    assert code == 0
    assert "in.csv: 151 rows, 150 of them answered before, 1 to ask." in output
    assert (folder / "out.csv").read_bytes() == after
    assert (manifest(folder)["asked"], manifest(folder)["kept"]) == (1, 150)


def test_d02_a_table_that_is_as_it_was_again_asks_nothing(
    folder: Path, expected: dict[int, bytes]
) -> None:
    assert predict(folder, "--quiet") == 0
    for rows in (50, 200):
        write_table(folder / "in.csv", rows)
        assert ask(folder, "--quiet") == (0, [])
        assert (folder / "out.csv").read_bytes() == expected[rows]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--top-k", 2), "top_k: was 3, is 2"),
        (("--max-images", 3), "max_images: was 1, is 3"),
        (("--max-new-tokens", 7), "max_new_tokens: was 32, is 7"),
        (("--engine", "transformers"), "engine: was scripted, is the bundle's"),
        (("--top-k", 2, "--max-new-tokens", 7), "top_k: was 3, is 2; max_new_tokens: was 32, is 7"),
    ],
)
@pytest.mark.parametrize("complete", [False, True])
def test_d03_a_setting_that_changes_answers_is_named_old_and_new(
    commands: Commands, folder: Path, options: tuple[object, ...], text: str, complete: bool
) -> None:
    begun(commands, folder, complete)
    output = refused(folder, *options)
    assert f"was begun with something else: {text}. Add `--fresh`" in output


def test_d03_other_models_are_refused(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0

    def change(bundle: Path) -> None:
        manifest = read_manifest(bundle)
        weights = next(name for name in manifest.files if name.endswith(".safetensors"))
        write_manifest(bundle, replace(manifest, files=manifest.files | {weights: "0" * 64}))

    assert "bundle: was " in refused(folder, "--bundle", another(folder, change))


def test_d03_another_prompt_is_refused(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0

    def change(bundle: Path) -> None:
        write_manifest(bundle, replace(read_manifest(bundle), template_version=EVIDENCE_FIRST))

    assert "prompt: was 1, is 2" in refused(folder, "--bundle", another(folder, change))


def test_d03_another_preprocessing_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(folder, "--quiet") == 0
    monkeypatch.setattr("mmrag_batch.run.keys.PIXELS_VERSION", 99)
    assert "image_preprocessing: was 2, is 99" in refused(folder)


def test_d04_what_changes_no_answer_may_change(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 128)
    shutil.copytree(DEMO_BUNDLE, folder.parent / "elsewhere")
    options = ("--batch-size", 3, "--device", "cpu", "--bundle", folder.parent / "elsewhere")
    code, numbers = ask(folder, *options, "--quiet", "--image-root", folder.parent)
    assert (code, sorted(numbers)) == (0, list(range(128, 200)))
    assert (folder / "out.csv").read_bytes() == expected[200]


@pytest.mark.parametrize("complete", [False, True])
def test_d05_a_store_of_another_format_is_refused_by_its_number(
    commands: Commands, folder: Path, complete: bool
) -> None:
    begun(commands, folder, complete)
    with closing(sqlite3.connect(folder / "out.csv.store")) as sql:
        sql.execute("PRAGMA user_version = 2")
    output = refused(folder)
    assert "has format 2, this version reads 1" in output
    assert "--fresh" in output
    assert ask(folder, "--fresh", "--quiet") == (0, list(range(200)))


def test_d06_an_output_that_was_edited_is_told_by_status_and_predict(
    folder: Path, expected: dict[int, bytes]
) -> None:
    assert predict(folder, "--quiet") == 0
    code, output = call("status", folder / "out.csv")
    assert (code, "200 ok, 0 degraded, 0 error" in output) == (0, True)
    out = folder / "out.csv"
    out.write_bytes(out.read_bytes().replace(b"yes", b"no!", 1))
    code, output = call("status", folder / "out.csv")
    assert (code, "was changed since it was written" in output) == (78, True)
    for options in ((), ("--retry-errors",), ("--fresh",), ("--verify-inputs",)):
        assert "was changed since it was written" in refused(folder, *options)
    assert ask(folder, "--overwrite", "--quiet") == (0, [])
    assert out.read_bytes() == expected[200]
    assert call("status", folder / "out.csv")[0] == 0


def test_d08_another_version_is_noted_and_told(
    commands: Commands, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(commands, folder, 128)
    monkeypatch.setattr("mmrag_batch.run.versions.version", lambda name: f"{name}-9")
    code, output = call(*words(folder))
    assert code == 0
    assert "is torch-9: noted" in output
    starts = manifest(folder)["starts"]
    assert [item["versions"]["torch"] == "torch-9" for item in starts] == [False, True]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A complete output of rows that name images: as the question's, as a document, one that is
    not there, one twice, and none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("c.png", "blue")):
        Image.new("RGB", (40, 40), colour).save(folder / name)
    rows = [
        ("What is it?", "a.png", ""),
        ("What is that?", "", json.dumps(["b.png", "a text"])),
        ("Where is it?", "late.png", ""),
        ("Which one?", "c.png", json.dumps(["late.png", "a text"])),
        ("Which two?", "c.png", json.dumps(["b.png"])),
        ("And without?", "", ""),
    ]
    write_rows(folder / "in.csv", rows, ("question_text", "question_image", "documents"))
    assert ask(folder, "--quiet") == (3, [0, 1, 3, 4, 5])
    assert [row["status"] for row in read_rows(folder / "out.csv")] == [
        *("ok", "ok", "error", "degraded", "ok", "ok")
    ]
    return folder


def asked_of(folder: Path, *options: object) -> list[int]:
    """The rows that a run asked, from which no order is to be expected."""
    code, numbers = ask(folder, "--quiet", *options)
    assert code in (0, 3)
    assert (folder / "out.csv").read_bytes() == whole(folder)
    return sorted(numbers)


def test_d09_rows_whose_image_changed_are_asked_with_verify_inputs_and_no_other(
    pictures: Path,
) -> None:
    assert asked_of(pictures, "--verify-inputs") == []
    Image.new("RGB", (40, 40), "black").save(pictures / "b.png")
    Image.new("RGB", (40, 40), "white").save(pictures / "a.png")
    assert ask(pictures, "--quiet") == (3, [])
    assert asked_of(pictures, "--verify-inputs") == [0, 1, 4]
    assert asked_of(pictures, "--verify-inputs") == []


def test_d09_an_image_that_was_missing_and_is_there_has_changed(pictures: Path) -> None:
    Image.new("RGB", (40, 40), "black").save(pictures / "late.png")
    assert ask(pictures, "--quiet") == (3, [])
    assert asked_of(pictures, "--verify-inputs") == [2, 3]
    assert {row["status"] for row in read_rows(pictures / "out.csv")} == {"ok"}


def test_d09_an_image_that_is_gone_has_changed(pictures: Path) -> None:
    (pictures / "a.png").unlink()
    assert asked_of(pictures, "--verify-inputs") == []  # it is an error before it is asked
    assert read_rows(pictures / "out.csv")[0]["error"].startswith("image_missing")
