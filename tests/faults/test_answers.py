"""The answer store's one rule, ask what has no answer, as it meets what people do."""

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.commands import Commands
from tests.faults.harness import (
    COLUMNS,
    DONE,
    QUICK,
    ask,
    asked,
    begin,
    call,
    committed,
    contents,
    identity,
    leave,
    manifest,
    names,
    predict,
    read_rows,
    run,
    wait_for,
    words,
    write_rows,
    write_table,
)

Rows = list[list[str]]


def change_rows(folder: Path, change: Callable[[Rows], object]) -> None:
    """Change the rows of in.csv."""
    with (folder / "in.csv").open(newline="") as stream:
        columns, *rows = csv.reader(stream)
    change(rows)
    write_rows(folder / "in.csv", rows, columns)


def set_cell(row: int, column: str, text: str) -> Callable[[Rows], None]:
    """A change of one cell."""

    def change(rows: Rows) -> None:
        rows[row][COLUMNS.index(column)] = text

    return change


def assert_as_anew(folder: Path, output: str = "out.csv") -> None:
    """The output is what a run without a past writes."""
    assert predict(folder, "--quiet", "--fresh", output="anew.csv") in (0, 3)
    assert (folder / output).read_bytes() == (folder / "anew.csv").read_bytes()
    for file in folder.glob("anew.csv*"):
        file.unlink()


def refuse(*_: object) -> None:
    raise AssertionError("a model is loaded")


def test_equal_questions_are_asked_once_and_answered_everywhere(tmp_path: Path) -> None:
    rows = [(f"q{n}", f"Is {n % 3} even?", '["yes", "no"]', f"note {n}") for n in range(60)]
    write_rows(tmp_path / "in.csv", rows)
    assert ask(tmp_path, "--quiet") == (0, [0, 1, 2])
    out = read_rows(tmp_path / "out.csv")
    assert [row["note"] for row in out] == [f"note {n}" for n in range(60)]
    for number, row in enumerate(out):
        assert row["choice_probabilities"] == out[number % 3]["choice_probabilities"]
    assert manifest(tmp_path)["rows"]["ok"] == 60


def test_an_equal_question_waits_for_the_first_that_is_in_flight(
    commands: Commands, tmp_path: Path
) -> None:
    """The engine is stuck at the first while the whole table is read."""
    rows = [(f"q{n}", "Is 7 even?", '["yes", "no"]', "") for n in range(100)]
    write_rows(tmp_path / "in.csv", rows)
    done = run(commands, tmp_path, "--quiet", script={"slow": {"0": 1}}, changes=QUICK)
    assert (done.code, asked(tmp_path)) == (0, [0])
    assert {row["prediction"] for row in read_rows(tmp_path / "out.csv")} < {"yes", "no"}


def test_equal_questions_that_failed_are_asked_once_more_with_retry_errors(
    tmp_path: Path,
) -> None:
    rows = [(f"q{n}", f"Is {n // 10} even?", '["yes", "no"]', "") for n in range(50)]
    write_rows(tmp_path / "in.csv", rows)
    assert ask(tmp_path, script={"oom": [20]}) == (3, [0, 10, 20, 30, 40])
    out = read_rows(tmp_path / "out.csv")
    assert [n for n, row in enumerate(out) if row["status"] == "error"] == list(range(20, 30))
    assert manifest(tmp_path)["codes"] == {"engine_oom": 10}
    assert ask(tmp_path) == (3, [])
    assert ask(tmp_path, "--retry-errors") == (0, [20])
    assert_as_anew(tmp_path)


def test_j05_one_cell_mended_after_exit_3_costs_one_question(folder: Path) -> None:
    """Field report 20."""
    write_table(folder / "in.csv", 200, broken=[3, 150])
    assert ask(folder)[0] == 3
    change_rows(folder, set_cell(150, "answer_choices", '["yes", "no"]'))
    assert ask(folder) == (3, [150])
    assert_as_anew(folder)
    change_rows(folder, set_cell(3, "answer_choices", '["yes", "no"]'))
    assert ask(folder) == (0, [3])
    assert_as_anew(folder)


def test_labels_that_are_corrected_everywhere_ask_nothing(folder: Path) -> None:
    rows = [[f"Is {n} even?", '["yes", "no"]', "yes"] for n in range(100)]
    columns = ("question_text", "answer_choices", "label")
    write_rows(folder / "in.csv", rows, columns)
    assert predict(folder, "--quiet") == 0
    for number, row in enumerate(rows):
        row[2] = "no" if number % 2 else "yes"
    write_rows(folder / "in.csv", rows, columns)
    assert ask(folder, "--quiet") == (0, [])
    assert [row["label"] for row in read_rows(folder / "out.csv")] == [row[2] for row in rows]
    assert_as_anew(folder)


def test_a_row_at_the_top_costs_one_question(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0
    change_rows(folder, lambda rows: rows.insert(0, ["new", "Is it?", '["yes", "no"]', ""]))
    assert ask(folder, "--quiet") == (0, [0])
    assert_as_anew(folder)


def test_a_column_that_passes_through_costs_nothing_and_is_in_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(folder, "--quiet") == 0
    change_rows(folder, set_cell(7, "note", "seen"))
    with monkeypatch.context() as patch:
        patch.setattr("mmrag_batch.run.predict.find_stages", refuse)
        assert predict(folder, "--quiet") == 0
    assert read_rows(folder / "out.csv")[7]["note"] == "seen"
    assert_as_anew(folder)


def test_a_column_that_is_new_is_in_the_output(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0
    with (folder / "in.csv").open(newline="") as stream:
        columns, *rows = csv.reader(stream)
    write_rows(folder / "in.csv", [["x", *row] for row in rows], ["group", *columns])
    assert ask(folder, "--quiet") == (0, [])
    assert {row["group"] for row in read_rows(folder / "out.csv")} == {"x"}
    assert_as_anew(folder)


def test_a_limit_that_grows_asks_the_rows_that_are_new(
    folder: Path, expected: dict[int, bytes]
) -> None:
    for limit, numbers in ((20, range(20)), (50, range(20, 50)), (30, ())):
        assert ask(folder, "--quiet", "--limit", limit) == (0, [*numbers])
        assert (folder / "out.csv").read_bytes() == first_rows(expected[200], limit)
    assert ask(folder, "--quiet") == (0, [*range(50, 200)])
    assert (folder / "out.csv").read_bytes() == expected[200]


def first_rows(output: bytes, rows: int) -> bytes:
    """The beginning of an output."""
    return b"\nq".join(output.split(b"\nq")[: rows + 1]) + b"\n"


def test_two_outputs_that_share_a_store_ask_once(folder: Path, expected: dict[int, bytes]) -> None:
    shared = folder / "answers.store"
    assert ask(folder, "--quiet", "--store", shared) == (0, [*range(200)])
    assert ask(folder, "--quiet", "--store", shared, output="other.csv") == (0, [])
    for output in ("out.csv", "other.csv"):
        assert (folder / output).read_bytes() == expected[200]
    assert names(folder) == {
        *("in.csv", "out.csv", "out.csv.manifest.json", "other.csv", "other.csv.manifest.json"),
        "answers.store",
    }
    assert ask(folder, "--quiet", "--store", shared) == (0, [])
    code, output = call(*words(folder, "--store", shared, "--top-k", 2, output="third.csv"))
    assert (code, "top_k: was 3, is 2" in output) == (78, True)


def test_a_store_that_is_shared_has_one_writer(commands: Commands, folder: Path) -> None:
    shared = ("--store", "answers.store")
    first = begin(commands, folder, *shared, script={"slow": {"70": 600}}, changes=QUICK)
    wait_for(lambda: committed(folder, "answers.store") == 64)
    second = run(commands, folder, *shared, output="other.csv", changes=QUICK)
    assert second.code == 11
    assert f"pid {first.pid}" in second.output
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert run(commands, folder, *shared, output="other.csv", changes=QUICK).code == 0
    assert len(asked(folder)) == 200 - 64


def test_a_store_that_is_gone_leaves_a_complete_output_alone(folder: Path) -> None:
    assert predict(folder, "--quiet") == 0
    (folder / "out.csv.store").unlink()
    before = {name: identity(folder / name) for name in ("out.csv", "out.csv.manifest.json")}
    assert ask(folder, "--quiet") == (0, [])
    change_rows(folder, set_cell(7, "note", "seen"))
    code, output = call(*words(folder, "--quiet"))
    assert (code, "The answers of" in output, "--fresh" in output) == (78, True, True)
    assert {name: identity(folder / name) for name in before} == before
    assert ask(folder, "--quiet", "--fresh") == (0, [*range(200)])
    assert_as_anew(folder)


def test_an_output_that_was_edited_is_written_anew_from_its_answers(
    folder: Path, expected: dict[int, bytes]
) -> None:
    assert predict(folder, "--quiet") == 0
    for data in (b"", expected[200][:-9], expected[200] + b"more\n", b"x" * len(expected[200])):
        (folder / "out.csv").write_bytes(data)
        assert ask(folder, "--quiet") == (78, [])
        assert (folder / "out.csv").read_bytes() == data
        assert ask(folder, "--quiet", "--overwrite") == (0, [])
        assert (folder / "out.csv").read_bytes() == expected[200]


def test_an_output_that_was_removed_is_written_anew_from_its_answers(
    folder: Path, expected: dict[int, bytes]
) -> None:
    assert predict(folder, "--quiet") == 0
    (folder / "out.csv").unlink()
    assert ask(folder, "--quiet") == (0, [])
    assert (folder / "out.csv").read_bytes() == expected[200]


@pytest.mark.parametrize("damage", [None, b"", b"{}", b"not a manifest", b"[1, 2]"])
def test_a_manifest_that_is_lost_or_damaged_is_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    assert predict(folder, "--quiet") == 0
    path = folder / "out.csv.manifest.json"
    before, out = manifest(folder), identity(folder / "out.csv")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    monkeypatch.setattr("mmrag_batch.run.predict.find_stages", refuse)
    assert predict(folder, "--quiet") == 0
    assert manifest(folder) == before
    assert identity(folder / "out.csv") == out
    assert names(folder) == DONE


def test_rows_that_cannot_be_read_end_a_run_before_a_model_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(folder / "in.csv", 200, broken=range(11))
    with monkeypatch.context() as patch:
        patch.setattr("mmrag_batch.run.predict.find_stages", refuse)
        code, output = call(*words(folder, "--max-row-errors", 10))
        assert (code, "11 rows failed" in output, "line 2: bad_choices" in output) == (
            4,
            True,
            True,
        )
    assert not (folder / "out.csv").exists()
    assert predict(folder, "--max-row-errors", 11, "--quiet") == 0


def test_fresh_asks_every_row_and_keeps_the_answers_aside(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 128)
    before = (folder / "out.csv.store").read_bytes()
    assert ask(folder, "--fresh", "--top-k", 2, "--quiet") == (0, [*range(200)])
    assert (folder / "out.csv.store.old-1").read_bytes() == before
    assert ask(folder, "--fresh", "--quiet") == (0, [*range(200)])
    assert (folder / "out.csv.store.old-2").exists()
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_fresh_goes_on_in_a_job_that_was_requeued(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    assert predict(folder, "--quiet") == 0
    slow = {"slow": {"64": 600}}
    first = begin(commands, folder, "--fresh", script=slow, environ={"SLURM_JOB_ID": "7"})
    wait_for(lambda: committed(folder) == 64)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    done = run(commands, folder, "--fresh", "--quiet", environ=again)
    assert (done.code, done.output) == (0, "")
    assert sorted(asked(folder)) == [*range(64, 200)]
    assert (folder / "out.csv").read_bytes() == expected[200]
    assert names(folder) == DONE | {"out.csv.store.old-1"}
    other = again | {"SLURM_JOB_ID": "8"}
    assert run(commands, folder, "--fresh", "--quiet", environ=other).code == 0
    assert asked(folder) == [*range(200)]


def test_a_folder_that_was_moved_goes_on(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 128)
    moved = folder.rename(folder.with_name("moved"))
    code, numbers = ask(moved, "--quiet")
    assert (code, sorted(numbers)) == (0, [*range(128, 200)])
    assert (moved / "out.csv").read_bytes() == expected[200]
    shutil.copytree(moved, folder)
    assert ask(folder, "--quiet") == (0, [])


def test_answers_without_a_broken_document_are_asked_again_with_retry_degraded(
    folder: Path,
) -> None:
    rows = [("What?", '["late.png", "a text"]'), ("What else?", '["a text"]')]
    write_rows(folder / "in.csv", rows, ("question_text", "documents"))
    assert ask(folder) == (0, [0, 1])
    Image.new("RGB", (40, 40), "red").save(folder / "late.png")
    assert ask(folder, "--retry-errors") == (0, [])
    assert ask(folder, "--retry-degraded") == (0, [0])
    assert {row["status"] for row in read_rows(folder / "out.csv")} == {"ok"}
    assert_as_anew(folder)


def test_status_writes_what_is_answered_so_far(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 64)
    before = contents(folder)["in.csv"]
    code, _ = call("status", folder / "out.csv", "--write", folder / "so-far.csv")
    assert code == 0
    assert (folder / "so-far.csv").read_bytes() == first_rows(expected[200], 64)
    assert contents(folder)["in.csv"] == before
    code, numbers = ask(folder, "--quiet")
    assert (code, len(numbers)) == (0, 136)
    assert (folder / "out.csv").read_bytes() == expected[200]


NEXT = [
    # What is done before, options, exit code, and what is to be done next.
    ("broken", (), 3, "--retry-errors"),
    ("broken", ("--max-row-errors", 0), 4, "run the same command again"),
    ("held", (), 11, "Another run writes this output"),
    ("columns", (), 65, "Rename"),
    ("missing", (), 66, "Check the path"),
    ("stranger", (), 73, "--overwrite"),
    ("done", ("--top-k", 2), 78, "--fresh"),
]


@pytest.mark.parametrize(("before", "options", "code", "text"), NEXT)
def test_quiet_says_one_line_with_what_to_do_next(
    commands: Commands,
    folder: Path,
    before: str,
    options: tuple[object, ...],
    code: int,
    text: str,
) -> None:
    running = None
    if before == "broken":
        write_table(folder / "in.csv", 20, broken=[3, 4])
    elif before == "held":
        running = begin(commands, folder, script={"load": 600}, changes=QUICK)
        wait_for((folder / "out.csv.store").exists)
    elif before == "columns":
        write_rows(folder / "in.csv", [["What?", ""]], ["question_text", "status"])
    elif before == "missing":
        (folder / "in.csv").unlink()
    elif before == "stranger":
        (folder / "out.csv").write_text("precious")
    else:
        assert call(*words(folder, "--quiet")) == (0, "")
        assert call(*words(folder, "--quiet")) == (0, "")
    found, output = call(*words(folder, "--quiet", *options))
    if running is not None:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert found == code, output
    (line,) = output.splitlines()
    assert line.startswith("mmrag-batch: ")
    assert text in line
