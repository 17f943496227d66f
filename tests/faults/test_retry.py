"""Rows that failed: listed beside the output, counted, and answered again on demand; and who is
told of them."""

import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.harness import COLUMNS, Crash, Disk, call, failing_disk, predict


def write_answerable(folder: Path, rows: int, broken: tuple[int, ...]) -> None:
    """A table whose broken rows name an image that is not there yet."""
    lines = [",".join((*COLUMNS, "question_image"))]
    for row in range(rows):
        image = "late.png" if row in broken else ""
        lines.append(f'q{row},Is {row} even?,"[""yes"", ""no""]",é,{image}')
    (folder / "in.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")


BROKEN = (0, 1, 70, 149)


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """A complete output of 150 rows, four of which failed."""
    write_answerable(tmp_path, 150, BROKEN)
    for suffix in ("csv", "csv.gz", "jsonl"):
        assert predict(tmp_path, "--quiet", output=f"out.{suffix}") == 3
    return tmp_path


def test_failed_rows_are_listed_beside_the_output(failed: Path) -> None:
    out = (failed / "out.csv").read_bytes()
    lines = (failed / "out.csv.errors.jsonl").read_text().splitlines()
    failures = [json.loads(line) for line in lines]
    assert [item["row"] for item in failures] == list(BROKEN)
    assert [item["line"] for item in failures] == [row + 2 for row in BROKEN]
    assert {item["code"] for item in failures} == {"image_missing"}
    for item in failures:
        assert out[item["start"] : item["stop"]].startswith(f"q{item['row']},".encode())
        assert out[item["stop"] - 1 : item["stop"]] == b"\n"
    assert "row 'q70': image_missing" in call("status", failed / "out.csv")[1]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl"])
@pytest.mark.parametrize("at", [None, *range(4, 40, 5)])
def test_failed_rows_are_answered_again_and_no_other_byte_changes(
    failed: Path, suffix: str, at: int | None
) -> None:
    def lines(file: Path) -> list[bytes]:
        data = file.read_bytes()
        return (gzip.decompress(data) if suffix.endswith("gz") else data).splitlines()

    out = failed / f"out.{suffix}"
    before = lines(out)
    Image.new("RGB", (40, 40), "red").save(failed / "late.png")
    assert predict(failed, "--quiet", output=out.name) == 3  # nothing is asked again unbidden
    assert lines(out) == before
    if at is not None:
        with failing_disk(Disk(at)), suppress(Crash):
            predict(failed, "--retry-errors", "--quiet", output=out.name)
    between = lines(out)
    assert predict(failed, "--retry-errors", "--quiet", output=out.name) == 0
    header = 0 if suffix == "jsonl" else 1
    changed = [row for row, pair in enumerate(zip(before, lines(out))) if pair[0] != pair[1]]
    assert changed == [row + header for row in BROKEN]
    assert between in (before, lines(out))
    assert not (failed / f"{out.name}.errors.jsonl").exists()
    assert predict(failed, "--quiet", output="whole." + suffix) == 0
    assert out.read_bytes() == (failed / f"whole.{suffix}").read_bytes()


def test_rows_that_fail_again_stay_failed(failed: Path) -> None:
    before = {name: (failed / name).read_bytes() for name in ("out.csv", "out.csv.errors.jsonl")}
    assert predict(failed, "--retry-errors", "--quiet") == 3
    assert {name: (failed / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(("limit", "code"), [("4", 0), ("3", 4), ("0.03", 0), ("0.02", 4)])
def test_a_run_with_too_many_failed_rows_ends_early_and_goes_on(
    tmp_path: Path, limit: str, code: int
) -> None:
    write_answerable(tmp_path, 150, BROKEN)
    assert predict(tmp_path, "--max-row-errors", limit, "--quiet") == code
    if code == 4:
        assert not (tmp_path / "out.csv").exists()
        output = call("status", tmp_path / "out.csv")[1]
        assert "of 150 rows are committed" in output
        assert "image_missing" in output
        assert predict(tmp_path, "--max-row-errors", limit, "--quiet") in (0, 3)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 151


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
