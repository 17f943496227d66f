"""Group D: a run that goes on with something else is refused by name; what changes no answer may
change. And the ways to go on that are asked for: more rows, failed rows again, or all anew."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmrag_batch.bundle import read_manifest, write_manifest
from mmrag_batch.config import DEMO_BUNDLE
from mmrag_batch.io import journal
from tests.faults.harness import (
    Crash,
    Disk,
    call,
    committed,
    failing_disk,
    names,
    predict,
    write_table,
)

HALF = 20
"""Operations of the disk after which some of 200 rows are committed."""


def interrupt(folder: Path, *options: object, at: int = HALF, output: str = "out.csv") -> None:
    """Leave a run with some of its rows committed."""
    with failing_disk(Disk(at)), pytest.raises(Crash):
        predict(folder, "--quiet", *options, output=output)


def begin(folder: Path, complete: bool) -> None:
    """Leave a run complete, or interrupted."""
    if complete:
        assert predict(folder, "--quiet") == 0
    else:
        interrupt(folder)


def refused(folder: Path, *options: object) -> str:
    """What a run that is refused says; it has changed nothing."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    words = ("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted", *options)
    code, output = call(*words)
    assert code == 78, output
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    return output


def another(folder: Path, change: Callable[[Path], object]) -> Path:
    """A bundle that is as the demo's, but for a change."""
    bundle = shutil.copytree(DEMO_BUNDLE, folder.parent / "bundle", symlinks=False)
    change(bundle)
    return bundle


@pytest.mark.parametrize("complete", [False, True])
def test_d01_one_byte_of_the_input_is_enough(folder: Path, complete: bool) -> None:
    begin(folder, complete)
    table = folder / "in.csv"
    table.write_bytes(table.read_bytes().replace(b"Is 150 even", b"Is 151 even"))
    output = refused(folder)
    assert "was begun with something else" in output
    assert "input: was " in output
    assert "--fresh" in output


def test_d02_rows_at_the_end_are_refused_and_taken_with_extend(
    folder: Path, expected: dict[int, bytes]
) -> None:
    interrupt(folder)
    rows = committed(folder)
    write_table(folder / "in.csv", 2000)
    refused(folder)
    assert predict(folder, "--extend", "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[2000]
    starts = json.loads((folder / "out.csv.manifest.json").read_text())["starts"]
    assert starts[-1]["row"] == rows


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
@pytest.mark.parametrize("at", [None, 3, 6, 9, 15])
def test_d02_a_complete_output_is_extended_and_keeps_its_rows_and_errors(
    tmp_path: Path, name: str, at: int | None
) -> None:
    write_table(tmp_path / "in.csv", 300, broken=[3, 250])
    assert predict(tmp_path, "--quiet", output=name.replace("out", "whole")) == 3
    write_table(tmp_path / "in.csv", 200, broken=[3])
    assert predict(tmp_path, "--quiet", output=name) == 3
    before = (tmp_path / name).read_bytes()
    write_table(tmp_path / "in.csv", 300, broken=[3, 250])
    if at is not None:
        interrupt(tmp_path, "--extend", at=at, output=name)
        assert (tmp_path / name).read_bytes() == before
    assert predict(tmp_path, "--extend", "--quiet", output=name) == 3
    assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("out", "whole")).read_bytes()
    errors = (tmp_path / f"{name}.errors.jsonl").read_text()
    assert errors == (tmp_path / f"{name.replace('out', 'whole')}.errors.jsonl").read_text()
    starts = json.loads((tmp_path / f"{name}.manifest.json").read_text())["starts"]
    assert starts[0]["row"] == 200


def test_d02_extend_takes_nothing_but_rows_at_the_end(folder: Path) -> None:
    whole = (folder / "in.csv").read_bytes()
    interrupt(folder)
    for table, words in (
        (whole.replace(b"Is 3 even", b"Is 4 even"), "does not begin with the rows"),
        (whole[: whole.index(b"q150,")], "does not begin with the rows"),
        (whole.replace(b"note\n", b"remark\n", 1), "other columns"),
    ):
        (folder / "in.csv").write_bytes(table + b"new,Is it?,,\n" + b"\n" * 99)
        assert words in refused(folder, "--extend")
    (folder / "in.csv").write_bytes(whole)
    assert "top_k: was 3, is 2" in refused(folder, "--extend", "--top-k", 2)


def test_d02_a_last_line_that_had_no_end_may_have_grown(folder: Path) -> None:
    table = folder / "in.csv"
    whole = table.read_bytes()
    table.write_bytes(whole.rstrip(b"\n"))
    interrupt(folder)
    table.write_bytes(whole + b"new,Is it?,,\n")
    assert "did not end in a line end" in refused(folder, "--extend")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--top-k", 2), "top_k: was 3, is 2"),
        (("--max-images", 3), "max_images: was 1, is 3"),
        (("--max-new-tokens", 7), "max_new_tokens: was 32, is 7"),
        (("--limit", 7), "limit: was not set, is 7"),
        (("--engine", "transformers"), "engine: was scripted, is the bundle's"),
    ],
)
@pytest.mark.parametrize("complete", [False, True])
def test_d03_a_setting_that_changes_answers_is_named_old_and_new(
    folder: Path, options: tuple[object, ...], words: str, complete: bool
) -> None:
    begin(folder, complete)
    assert words in refused(folder, *options)


def test_d03_other_models_are_refused(folder: Path) -> None:
    interrupt(folder)

    def change(bundle: Path) -> None:
        manifest = read_manifest(bundle)
        weights = next(name for name in manifest.files if name.endswith(".safetensors"))
        write_manifest(bundle, replace(manifest, files=manifest.files | {weights: "0" * 64}))

    assert "bundle: was " in refused(folder, "--bundle", another(folder, change))


def test_d03_another_prompt_template_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(folder)
    monkeypatch.setattr("mmrag_batch.run.fingerprint.TEMPLATE_VERSION", 2)
    assert "prompt: was 1, is 2" in refused(folder)


def test_d04_what_changes_no_answer_may_change(folder: Path, expected: dict[int, bytes]) -> None:
    interrupt(folder)
    shutil.copytree(DEMO_BUNDLE, folder.parent / "elsewhere")
    options = ("--batch-size", 3, "--device", "cpu", "--bundle", folder.parent / "elsewhere")
    assert predict(folder, *options, "--quiet", "--image-root", folder.parent) == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_d05_a_journal_of_another_format_is_refused_by_its_number(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(folder)
    monkeypatch.setattr(journal, "FORMAT", 2)
    assert "has format 1, this version writes 2" in refused(folder)


def test_d06_an_output_that_was_edited_is_told_by_status_and_predict(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0
    code, output = call("status", folder / "out.csv")
    assert (code, "200 ok, 0 degraded, 0 error" in output) == (0, True)
    out = folder / "out.csv"
    out.write_bytes(out.read_bytes().replace(b"yes", b"no!", 1))
    code, output = call("status", folder / "out.csv")
    assert (code, "was changed since it was written" in output) == (78, True)
    assert "was changed since it was written" in refused(folder)


def test_d08_another_version_is_noted_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(folder)
    monkeypatch.setattr("mmrag_batch.run.versions.version", lambda name: f"{name}-9")
    words = ("predict", folder / "in.csv", folder / "out.csv", "--engine", "scripted")
    code, output = call(*words)
    assert code == 0
    assert "is torch-9: noted" in output
    starts = json.loads((folder / "out.csv.manifest.json").read_text())["starts"]
    assert [item["versions"]["torch"] == "torch-9" for item in starts] == [False, True]


def test_fresh_begins_anew_and_keeps_what_was_there_aside(
    folder: Path, expected: dict[int, bytes]
) -> None:
    interrupt(folder)
    journal_before = (folder / "out.csv.state" / "journal").read_bytes()
    assert predict(folder, "--fresh", "--top-k", 2, "--quiet") == 0
    old = folder / "out.csv.old-1"
    assert (old / "out.csv.state" / "journal").read_bytes() == journal_before
    assert names(old) == {"out.csv.state", "out.csv.partial"}
    assert predict(folder, "--fresh", "--quiet") == 0
    assert names(folder / "out.csv.old-2") == {"out.csv", "out.csv.manifest.json"}
    assert (folder / "out.csv").read_bytes() == expected[200]
