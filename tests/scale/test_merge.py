"""Shards that are written apart and merged: the bytes of one run, or a refusal that says why."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from mmrag_batch.cli import app
from mmrag_batch.scale import merge as merging

ROWS = 50
BROKEN = (7, 20, 49)
"""Rows without an answer, in different shards."""


def call(*arguments: object, **environment: str) -> Result:
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, words, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def predict(folder: Path, name: str, *options: object, **environment: str) -> Result:
    words = ("predict", folder / "in.csv", folder / name, "--engine", "scripted", *options)
    return call(*words, **environment)


def write_table(folder: Path, rows: int = ROWS) -> None:
    lines = [f'What is {n}?,"[""a"", ""b""]",' for n in range(rows)]
    for number in BROKEN:
        lines[number] = f"What is {number}?,not a list,"
    (folder / "in.csv").write_text("\n".join(["question_text,answer_choices,note", *lines, ""]))


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table answered in one run (`whole`) and in four shards (of `out`), unpacked and packed."""
    folder = tmp_path_factory.mktemp("answered")
    write_table(folder)
    for suffix in ("csv", "csv.gz", "jsonl"):
        assert predict(folder, f"whole.{suffix}").exit_code == 3
        for index in range(4):
            code = predict(folder, f"out.{suffix}", "--shard", f"{index}/4").exit_code
            assert code == (0 if index == 2 else 3)
    return folder


@pytest.fixture
def folder(answered: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(answered, tmp_path / "answered")


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl"])
def test_d04_merged_shards_are_the_bytes_of_one_run(folder: Path, suffix: str) -> None:
    merged, whole = folder / f"out.{suffix}", folder / f"whole.{suffix}"
    done = call("merge", merged)
    assert done.exit_code == 3, done.stderr
    assert merged.read_bytes() == whole.read_bytes()
    errors = [file.with_name(file.name + ".errors.jsonl") for file in (merged, whole)]
    assert errors[0].read_text() == errors[1].read_text()
    manifests = [
        json.loads(file.with_name(file.name + ".manifest.json").read_text())
        for file in (merged, whole)
    ]
    timings = ("starts", "seconds", "finished")
    shown = [{k: v for k, v in manifest.items() if k not in timings} for manifest in manifests]
    assert shown[0] == shown[1]
    assert len(manifests[0]["starts"]) == 4
    assert not any("state" in file.name or "partial" in file.name for file in folder.iterdir())


def test_a_merge_that_is_done_does_nothing(folder: Path) -> None:
    call("merge", folder / "out.csv")
    before = (folder / "out.csv").stat().st_mtime_ns
    assert call("merge", folder / "out.csv").exit_code == 3
    assert (folder / "out.csv").stat().st_mtime_ns == before
    assert predict(folder, "out.csv").exit_code == 3  # as after one run
    assert (folder / "out.csv").stat().st_mtime_ns == before


def test_failed_rows_of_a_merged_output_can_be_tried_again(folder: Path) -> None:
    call("merge", folder / "out.csv")
    before = (folder / "out.csv").read_bytes()
    assert predict(folder, "out.csv", "--retry-errors").exit_code == 3
    assert (folder / "out.csv").read_bytes() == before


def test_rows_that_were_answered_again_are_merged_when_asked(folder: Path) -> None:
    """A shard's image arrives after the merge, and its row is tried again."""
    table = folder / "in.csv"
    table.write_text("question_text,question_image\nWhat?,\nWhy?,late.png\n")
    for index in range(2):
        predict(folder, "late.csv", "--shard", f"{index}/2")
    assert call("merge", folder / "late.csv").exit_code == 3
    Image.new("RGB", (8, 8)).save(folder / "late.png")
    assert predict(folder, "late.csv", "--shard", "1/2", "--retry-errors").exit_code == 0
    done = call("merge", folder / "late.csv")
    assert done.exit_code == 78
    assert "is not what its shards are now" in done.stderr
    assert call("merge", folder / "late.csv", "--overwrite").exit_code == 0
    assert "error" not in (folder / "late.csv").read_text().partition("\n")[2]
    assert not (folder / "late.csv.errors.jsonl").exists()


def test_an_unfinished_run_of_its_own_is_not_merged_over(folder: Path) -> None:
    assert predict(folder, "out.csv", "--limit", 9, "--max-row-errors", 0).exit_code == 4
    done = call("merge", folder / "out.csv")
    assert done.exit_code == 78
    assert "unfinished run of its own" in done.stderr


def test_d07_unfinished_shards_are_named(folder: Path) -> None:
    for index in (1, 3):
        (folder / f"out.shard-{index}-of-4.csv.manifest.json").unlink()
    done = call("merge", folder / "out.csv")
    assert done.exit_code == 4
    assert "not finished yet: shard 1/4, 3/4." in done.stderr
    assert not (folder / "out.csv").exists()


def test_shards_of_another_number_are_left_alone(folder: Path) -> None:
    predict(folder, "out.csv", "--shard", "1/2")
    assert call("merge", folder / "out.csv").exit_code == 3
    assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def change_manifest(folder: Path, index: int, **values: object) -> None:
    file = folder / f"out.shard-{index}-of-4.csv.manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (1, {"first": 13}, "no shard has rows 12 to 12"),
        (1, {"first": 11}, "two shards have rows 11 to 11"),
        (3, {"stop": 49}, "no shard has rows 49 to 49"),
    ],
)
def test_d07_rows_that_no_shard_or_two_have_are_named(
    folder: Path, index: int, change: dict[str, object], words: str
) -> None:
    change_manifest(folder, index, **change)
    done = call("merge", folder / "out.csv")
    assert done.exit_code == 70
    assert words in done.stderr


def test_d03_shards_of_two_runs_are_told_apart(folder: Path) -> None:
    shard = "out.shard-2-of-4.csv"
    for suffix in ("", ".manifest.json"):
        (folder / (shard + suffix)).unlink()
    assert predict(folder, "out.csv", "--shard", "2/4", "--top-k", 1).exit_code == 0
    done = call("merge", folder / "out.csv")
    assert done.exit_code == 78
    assert "top_k: was" in done.stderr
    assert shard in done.stderr


def test_d06_a_shard_that_was_edited_is_refused(folder: Path) -> None:
    with (folder / "out.shard-1-of-4.csv").open("a") as stream:
        stream.write("one more row\n")
    done = call("merge", folder / "out.csv")
    assert done.exit_code == 78
    assert "out.shard-1-of-4.csv was changed" in done.stderr


def test_c07_an_output_that_is_not_ours_is_kept(folder: Path) -> None:
    (folder / "out.csv").write_text("precious")
    assert call("merge", folder / "out.csv").exit_code == 73
    assert (folder / "out.csv").read_text() == "precious"
    assert call("merge", folder / "out.csv", "--overwrite").exit_code == 3
    assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def test_no_shards_are_no_output(tmp_path: Path) -> None:
    assert call("merge", tmp_path / "absent" / "out.csv").exit_code == 66
    done = call("merge", tmp_path / "out.csv")
    assert done.exit_code == 66
    assert "--shard 0/4" in done.stderr


def test_shards_of_a_limited_run_are_merged(tmp_path: Path) -> None:
    write_table(tmp_path)
    for index in range(3):
        assert predict(tmp_path, "out.csv", "--shard", f"{index}/3", "--limit", 7).exit_code == 0
    assert call("merge", tmp_path / "out.csv").exit_code == 0
    assert predict(tmp_path, "whole.csv", "--limit", 7).exit_code == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_more_shards_than_rows_are_merged(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("question_text\nWhat?\n")
    for index in range(3):
        assert predict(tmp_path, "out.csv", "--shard", f"{index}/3").exit_code == 0
    assert call("merge", tmp_path / "out.csv").exit_code == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == 2


def test_a_shard_is_that_of_the_array_unless_it_is_given(tmp_path: Path) -> None:
    write_table(tmp_path, rows=ROWS)
    array = {f"SLURM_ARRAY_TASK_{k}": v for k, v in {"ID": "1", "COUNT": "2", "MIN": "0"}.items()}
    predict(tmp_path, "out.csv", **array)
    predict(tmp_path, "out.csv", "--shard", "3/4", **array)
    names = {file.name for file in tmp_path.glob("out*.csv")}
    assert names == {"out.shard-1-of-2.csv", "out.shard-3-of-4.csv"}
    first = (tmp_path / "out.shard-1-of-2.csv").read_text().splitlines()[1]
    assert first.startswith(f"What is {ROWS // 2}?")


def test_a_shard_is_not_extended(tmp_path: Path) -> None:
    write_table(tmp_path)
    done = predict(tmp_path, "out.csv", "--shard", "0/4", "--extend")
    assert done.exit_code == 78
    assert "--extend is not for shards" in done.stderr


def test_i04_a_shard_that_is_started_twice_has_one_writer(answered: Path, tmp_path: Path) -> None:
    write_table(tmp_path)
    command = [sys.executable, "-m", "mmrag_batch", "predict", "in.csv", "out.csv"]
    command += ["--engine", "scripted", "--shard", "1/4"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=60)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 3 in codes, told
    for code, text in zip(codes, told):  # the other finds it locked, or done
        assert code == 3 or (code == 11 and "Another run writes this output" in text)
    shard = "out.shard-1-of-4.csv"
    assert (tmp_path / shard).read_bytes() == (answered / shard).read_bytes()


def test_i05_times_of_files_decide_nothing(folder: Path) -> None:
    hour = 3600
    for number, file in enumerate(sorted(folder.iterdir())):
        seconds = file.stat().st_mtime + hour * (-1) ** number
        os.utime(file, (seconds, seconds))
    assert call("merge", folder / "out.csv").exit_code == 3
    assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()
    before = (folder / "whole.csv").stat().st_mtime_ns
    os.utime(folder / "in.csv", (9 * hour,) * 2)
    assert predict(folder, "whole.csv").exit_code == 3
    assert (folder / "whole.csv").stat().st_mtime_ns == before


def test_b06_a_merge_that_is_told_to_stop_finishes_or_can_be_run_again(
    answered: Path, tmp_path: Path
) -> None:
    codes = []
    for number in range(6):
        folder = shutil.copytree(answered, tmp_path / str(number))
        command = [sys.executable, "-m", "mmrag_batch", "merge", "out.csv"]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE)
        time.sleep(0.1 * number)
        process.terminate()
        process.communicate(timeout=60)
        codes.append(process.returncode)
        assert call("merge", folder / "out.csv").exit_code == 3
        assert (folder / "out.csv").read_bytes() == (folder / "whole.csv").read_bytes()
    assert set(codes) <= {3, 75, -signal.SIGTERM}, codes


class Died(BaseException):
    """What stands for a kill: nothing catches it."""


def count_writes(monkeypatch: pytest.MonkeyPatch, fault: Callable[[int], None]) -> list[int]:
    """Calls `fault` with the number of each write, fsync and rename that a merge is about to do."""
    calls = [0]

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*arguments: object) -> object:
            calls[0] += 1
            fault(calls[0])
            return real(*arguments)

        monkeypatch.setattr(os, name, wrapped)

    for name in ("write", "fsync", "replace", "unlink", "rmdir"):
        wrap(name)
    return calls


def test_a06_a_merge_that_dies_at_any_step_can_be_run_again(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (answered / "whole.csv").read_bytes()
    step = 0
    while True:
        step += 1
        folder = shutil.copytree(answered, tmp_path / str(step))

        def die(number: int, step: int = step) -> None:
            if number == step:
                raise Died

        with monkeypatch.context() as patch:
            calls = count_writes(patch, die)
            try:
                merging.merge(folder / "out.csv")
            except Died:
                assert (
                    not (folder / "out.csv").exists()
                    or (folder / "out.csv").read_bytes() == expected
                )
        assert call("merge", folder / "out.csv").exit_code == 3
        assert (folder / "out.csv").read_bytes() == expected
        shutil.rmtree(folder)
        if calls[0] < step:
            break
    assert step > 8


def test_c02_a_disk_that_fills_up_at_any_step_of_a_merge_leaves_no_output(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    for step in range(1, 8):
        folder = shutil.copytree(answered, tmp_path / str(step))

        def fill_up(number: int, step: int = step) -> None:
            if number == step:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            count_writes(patch, fill_up)
            done = call("merge", folder / "out.csv")
        failed += done.exit_code == 74
        assert done.exit_code in (74, 3)
        assert call("merge", folder / "out.csv").exit_code == 3
        assert (folder / "out.csv").read_bytes() == (answered / "whole.csv").read_bytes()
    assert failed >= 4
