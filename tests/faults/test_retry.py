"""Rows that failed: shown, counted, and asked again on demand; and who is told of them."""

import csv
import gzip
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.commands import Commands, Fault
from tests.faults.harness import (
    COLUMNS,
    QUICK,
    ask,
    begin,
    call,
    committed,
    identity,
    manifest,
    predict,
    read_rows,
    run,
    starts,
    wait_for,
    words,
    write_rows,
    write_table,
)

BROKEN = (0, 1, 70, 149)


def write_answerable(folder: Path, rows: int, broken: tuple[int, ...]) -> None:
    """A table whose broken rows name an image that is not there yet."""
    images = ["late.png" if row in broken else "" for row in range(rows)]
    lines = [
        (f"q{n}", f"Is {n} even?", '["yes", "no"]', "é", image) for n, image in enumerate(images)
    ]
    write_rows(folder / "in.csv", lines, (*COLUMNS, "question_image"))


def lines_of(file: Path) -> list[bytes]:
    """The lines of an output of any kind."""
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).splitlines()


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """A complete output of 150 rows, four of which failed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_answerable(folder, 150, BROKEN)
    assert predict(folder, "--quiet") == 3
    return folder


def test_failed_rows_are_told_in_the_output_by_status_and_at_the_end(failed: Path) -> None:
    rows = read_rows(failed / "out.csv")
    errors = {n: row["error"] for n, row in enumerate(rows) if row["status"] == "error"}
    assert [*errors] == [*BROKEN]
    for number, error in errors.items():
        assert error.startswith(f"image_missing: line {number + 2}: ")
    assert manifest(failed)["codes"] == {"image_missing": 4}
    code, output = call("status", failed / "out.csv")
    assert code == 0
    assert "146 ok, 0 degraded, 4 error" in output
    assert "line 72: image_missing" in output
    _, output = call(*words(failed, "--quiet"))
    assert "4 of 150 rows have no answer (image_missing 4), the first in line 2" in output
    assert "--retry-errors`" in output


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl"])
def test_failed_rows_are_answered_again_and_no_other_byte_changes(
    failed: Path, suffix: str
) -> None:
    out = failed / f"out.{suffix}"
    assert predict(failed, "--quiet", output=out.name) == 3
    before = lines_of(out)
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    assert ask(failed, "--quiet", output=out.name) == (3, [])  # nothing is asked again unbidden
    assert lines_of(out) == before
    assert ask(failed, "--retry-errors", "--quiet", output=out.name) == (0, [*BROKEN])
    header = 0 if suffix == "jsonl" else 1
    changed = [row for row, pair in enumerate(zip(before, lines_of(out))) if pair[0] != pair[1]]
    assert changed == [row + header for row in BROKEN]
    assert predict(failed, "--quiet", output="whole." + suffix) == 0
    assert out.read_bytes() == (failed / f"whole.{suffix}").read_bytes()


def test_a_retry_that_dies_leaves_the_output_as_it_was_until_it_is_done(
    commands: Commands, failed: Path
) -> None:
    """At every seventh operation of the disk, always on behind the last."""
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    before = (failed / "out.csv").read_bytes()
    assert predict(failed, "--quiet", output="whole.csv") == 0
    after = (failed / "whole.csv").read_bytes()
    deaths, seen = 0, set()
    for at in range(3, 1000, 7):
        done = run(commands, failed, "--retry-errors", "--quiet", fault=Fault(at, "power"))
        seen.add((failed / "out.csv").read_bytes())
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL
        deaths += 1
    assert deaths > 5
    assert seen == {before, after}
    assert predict(failed, "--quiet") == 0
    assert (failed / "out.csv").read_bytes() == after


def test_rows_that_fail_again_stay_failed(failed: Path) -> None:
    before = identity(failed / "out.csv")
    assert ask(failed, "--retry-errors", "--quiet") == (3, [])
    assert identity(failed / "out.csv") == before


@pytest.mark.parametrize(("limit", "code"), [("4", 0), ("3", 4), ("0.03", 0), ("0.02", 4)])
def test_a_run_with_too_many_failed_rows_ends_early_and_goes_on(
    tmp_path: Path, limit: str, code: int
) -> None:
    write_answerable(tmp_path, 150, BROKEN)
    assert predict(tmp_path, "--max-row-errors", limit, "--quiet") == code
    if code == 4:
        assert not (tmp_path / "out.csv").exists()
        assert committed(tmp_path) > 100
        output = call("status", tmp_path / "out.csv")[1]
        assert "of 150 rows are done" in output
        assert predict(tmp_path, "--max-row-errors", limit, "--quiet") == 3
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 151


@pytest.mark.parametrize(("limit", "code"), [("5", 0), ("4", 4)])
def test_rows_that_cannot_be_read_count_among_those_that_fail(
    tmp_path: Path, limit: str, code: int
) -> None:
    write_answerable(tmp_path, 150, BROKEN)
    with (tmp_path / "in.csv").open("a", encoding="utf-8") as table:
        table.write("last,Is it?,not a list,,\n")
    assert predict(tmp_path, "--max-row-errors", limit, "--quiet") == code


def test_status_of_nothing_is_told(tmp_path: Path) -> None:
    code, output = call("status", tmp_path / "out.csv")
    assert (code, "no output of a run" in output) == (66, True)


def test_metrics_are_written_for_a_run_that_ends_well_and_one_that_does_not(folder: Path) -> None:
    metrics = folder / "mmrag.prom"
    assert predict(folder, "--metrics-file", metrics, "--quiet") == 0
    text = metrics.read_text()
    assert f'mmrag_rows{{output="{folder / "out.csv"}",status="ok"}} 200\n' in text
    assert f'mmrag_run_exit_code{{output="{folder / "out.csv"}"}} 0\n' in text
    assert predict(folder, "--metrics-file", metrics, "--top-k", 1) == 78
    assert f'mmrag_run_exit_code{{output="{folder / "out.csv"}"}} 78\n' in metrics.read_text()
    assert predict(folder, "--metrics-file", folder / "none" / "x.prom") == 73


# Sequences. ------------------------------------------------------------------------------------


def append(folder: Path, rows: int) -> None:
    """More rows at the end of in.csv."""
    with (folder / "in.csv").open("a", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        for row in range(rows):
            table.writerow((f"r{row}", f"Is {row} odd?", '["yes", "no"]', "é", ""))


def whole(folder: Path) -> bytes:
    """What one run over in.csv as it is now writes."""
    assert predict(folder, "--quiet", output="whole.csv") == 0
    return (folder / "whole.csv").read_bytes()


def test_j01_rows_fail_are_mended_and_more_are_appended(failed: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    assert ask(failed, "--retry-errors", "--quiet") == (0, [*BROKEN])
    append(failed, 50)
    assert ask(failed, "--quiet") == (0, [*range(150, 200)])
    assert (failed / "out.csv").read_bytes() == whole(failed)


def test_j01_rows_fail_and_more_are_appended_before_they_are_mended(failed: Path) -> None:
    append(failed, 50)
    assert ask(failed, "--quiet") == (3, [*range(150, 200)])
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    assert ask(failed, "--retry-errors", "--quiet") == (0, [*BROKEN])
    assert (failed / "out.csv").read_bytes() == whole(failed)


@pytest.mark.parametrize("at", [3, *range(20, 120, 10)])
def test_j02_a_retry_dies_and_rows_are_appended(commands: Commands, failed: Path, at: int) -> None:
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    died = run(commands, failed, "--retry-errors", "--quiet", fault=Fault(at, "power"))
    assert died.code == -signal.SIGKILL
    append(failed, 50)
    code, numbers = ask(failed, "--quiet", "--retry-errors")
    assert code == 0
    assert {*range(150, 200)} <= {*numbers} <= {*BROKEN, *range(150, 200)}
    assert (failed / "out.csv").read_bytes() == whole(failed)


def die_at(commands: Commands, folder: Path, operation: str, *options: object) -> None:
    """Run until an operation of the disk is to be done, and die there."""
    probe = shutil.copytree(folder, folder.with_name("probe"))
    log = run(commands, probe, *options, "--quiet", log=True).operations
    died = run(commands, folder, *options, "--quiet", fault=Fault(log.index(operation)))
    assert died.code == -signal.SIGKILL
    shutil.rmtree(probe)


@pytest.mark.parametrize("retry", [False, True])
def test_j03_a_run_dies_before_its_manifest_and_rows_are_appended(
    commands: Commands, failed: Path, retry: bool
) -> None:
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    if retry:
        die_at(commands, failed, "rename out.csv.manifest.json", "--retry-errors")
    else:
        for file in failed.glob("out.csv*"):
            file.unlink()
        die_at(commands, failed, "rename out.csv.manifest.json")
        assert not (failed / "out.csv.manifest.json").exists()
    append(failed, 50)
    assert ask(failed, "--quiet") == (0, [*range(150, 200)])
    assert (failed / "out.csv").read_bytes() == whole(failed)


@pytest.mark.parametrize("cut", [True, False])
def test_j04_an_output_that_is_edited_while_a_retry_is_unfinished_is_not_taken_for_whole(
    commands: Commands, failed: Path, cut: bool
) -> None:
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    out = failed / "out.csv"
    die_at(commands, failed, "rename out.csv", "--retry-errors")
    data = out.read_bytes()[:-40] if cut else out.read_bytes().replace(b"yes", b"no!", 1)
    out.write_bytes(data)
    for options in ((), ("--retry-errors",), ("--fresh",)):
        assert ask(failed, "--quiet", *options) == (78, [])
        assert out.read_bytes() == data
    assert call("status", out)[0] == 78
    assert ask(failed, "--quiet", "--overwrite") == (0, [])
    assert out.read_bytes() == whole(failed)


def test_j08_an_engine_that_is_not_there_binds_nobody_to_its_settings(
    folder: Path, expected: dict[int, bytes]
) -> None:
    words = ("predict", folder / "in.csv", folder / "out.csv", "--top-k", 1)
    assert call(*words, "--engine", "server")[0] == 78  # it needs an address
    assert (folder / "out.csv.store").exists()
    assert ask(folder, "--quiet") == (0, [*range(200)])
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_j08_a_start_that_was_interrupted_while_it_loaded_binds_nobody_to_its_settings(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    running = begin(commands, folder, "--top-k", 1, script={"load": 600})
    wait_for(lambda: starts(folder))
    running.send_signal(signal.SIGINT)
    assert running.wait().code == 130
    assert ask(folder, "--quiet") == (0, [*range(200)])
    assert (folder / "out.csv").read_bytes() == expected[200]
    assert "top_k: was 3, is 1" in call(*words(folder, "--top-k", 1))[1]


@pytest.mark.parametrize(
    ("function", "count"),
    [
        ("mmrag_batch.run.survey.scan", 1),
        ("mmrag_batch.run.survey.parse_row", 300),
        ("mmrag_batch.run.predict.find_others", 1),
        ("mmrag_batch.run.work.read_rows", 1),
        ("mmrag_batch.run.work.Work.keep", 1),
        ("mmrag_batch.run.work.Work.keep", 590),
        ("mmrag_batch.run.predict.publish", 1),
        ("mmrag_batch.table.output.RowFormat.row", 300),
        ("mmrag_batch.run.publish._check", 1),
    ],
)
def test_j09_a_table_that_is_rewritten_while_it_is_read_is_not_published(
    commands: Commands, folder: Path, function: str, count: int
) -> None:
    write_table(folder / "new.csv", 600)
    table = (folder / "new.csv").read_bytes()
    (folder / "in.csv").write_bytes(table)
    # As long as it was, so that nothing but the questions tells the two apart.
    (folder / "new.csv").write_bytes(table.replace(b"even", b"odd?"))
    changes = {**QUICK, "rewrites": {function: count}}
    done = run(commands, folder, "--quiet", changes=changes)
    assert (folder / "in.csv").read_bytes() == (folder / "new.csv").read_bytes() != table
    assert done.code in (65, 70), done.output
    assert "changed while" in done.output
    assert not (folder / "out.csv").exists()
    assert ask(folder, "--quiet")[0] == 0
    assert (folder / "out.csv").read_bytes() == whole(folder)
