"""The answer table: its cells, its one-step appearance, and the outputs it refuses."""

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrag_batch.errors import InputError, OutputError
from mmrag_batch.io.output import OUTPUT_COLUMNS, OutputWriter, check_output, status_of
from mmrag_batch.records import Document, Evidence, Prediction, Problem, Row


def make_row(number: int = 0, cells: Mapping[str, object] | None = None) -> Row:
    return Row(number=number, line=number + 2, id=str(number), cells=cells or {"q": "What?"})


def answered() -> Row:
    row = make_row()
    row.evidence = (
        Evidence(Document("d1", "t", None), 3.123456),
        Evidence(Document("é", "t", None), -1),
    )
    row.prediction = Prediction("two", 1, (0.1234567, 0.8765433))
    return row


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_an_answer_fills_every_column(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with OutputWriter(out, ("q",)) as writer:
        writer.write(answered())
    assert read_csv(out) == [
        {
            "q": "What?",
            "prediction": "two",
            "prediction_index": "1",
            "confidence": "0.876543",
            "choice_probabilities": "[0.123457, 0.876543]",
            "evidence": '[{"id": "d1", "score": 3.1235}, {"id": "é", "score": -1}]',
            "status": "ok",
            "error": "",
        }
    ]


def test_a_free_form_answer_has_no_index_and_no_probabilities(tmp_path: Path) -> None:
    row = make_row()
    row.prediction = Prediction("a cat")
    with OutputWriter(tmp_path / "out.csv", ("q",)) as writer:
        writer.write(row)
    (cells,) = read_csv(tmp_path / "out.csv")
    assert list(cells.values()) == ["What?", "a cat", "", "", "", "[]", "ok", ""]


def test_an_error_row_says_why_and_predicts_nothing(tmp_path: Path) -> None:
    row = make_row()
    row.error = Problem("bad_row", "line 2: no")
    row.problems.append(Problem("image_missing", "a.png"))
    with OutputWriter(tmp_path / "out.csv", ("q",)) as writer:
        writer.write(row)
    (cells,) = read_csv(tmp_path / "out.csv")
    assert (cells["status"], cells["error"]) == ("error", "bad_row: line 2: no")
    assert cells["prediction"] == ""


def test_a_degraded_row_lists_its_problems(tmp_path: Path) -> None:
    row = answered()
    row.problems += [Problem("image_missing", "a.png"), Problem("image_corrupt", "b.png")]
    with OutputWriter(tmp_path / "out.csv", ("q",)) as writer:
        writer.write(row)
    (cells,) = read_csv(tmp_path / "out.csv")
    assert (cells["status"], cells["prediction"]) == ("degraded", "two")
    assert cells["error"] == "image_missing: a.png; image_corrupt: b.png"


def test_the_status_is_the_worst_that_happened() -> None:
    row = make_row()
    assert status_of(row) == "ok"
    row.problems.append(Problem("image_missing", "a"))
    assert status_of(row) == "degraded"
    row.error = Problem("bad_row", "b")
    assert status_of(row) == "error"


def test_lines_end_in_lf_and_only_what_must_be_is_quoted(tmp_path: Path) -> None:
    with OutputWriter(tmp_path / "out.csv", ("a", "b")) as writer:
        writer.write(make_row(0, {"a": "x y", "b": 'c,"d"'}))
    data = (tmp_path / "out.csv").read_bytes()
    assert data == (
        b"a,b,prediction,prediction_index,confidence,choice_probabilities,evidence,status,error\n"
        b'x y,"c,""d""",,,,,[],ok,\n'
    )


def test_values_that_are_no_text_are_json_in_csv(tmp_path: Path) -> None:
    cells = {"a": ["x", "é"], "b": 1.5, "c": None, "d": True}
    with OutputWriter(tmp_path / "out.csv", ("a", "b", "c", "d", "e")) as writer:
        writer.write(make_row(0, cells))
    (read,) = read_csv(tmp_path / "out.csv")
    assert [read[name] for name in "abcde"] == ['["x", "é"]', "1.5", "", "true", ""]


def test_json_lines_keep_values_as_they_are(tmp_path: Path) -> None:
    cells = {"a": ["x", "\u2028"], "b": 1.5, "c": None}
    with OutputWriter(tmp_path / "out.jsonl", ("a", "b", "c", "d")) as writer:
        row = answered()
        row.cells = cells
        writer.write(row)
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    read = json.loads(line)
    assert list(read) == [*cells, *OUTPUT_COLUMNS]
    assert {name: read[name] for name in cells} == cells
    assert read["choice_probabilities"] == [0.123457, 0.876543]
    assert read["evidence"][0] == {"id": "d1", "score": 3.1235}
    assert (read["prediction_index"], read["error"]) == (1, None)


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    for name in ("out.csv", "out.jsonl"):
        with OutputWriter(tmp_path / name, ("a",)) as writer:
            writer.write(make_row(0, {"a": "x\ud800"}))
    assert read_csv(tmp_path / "out.csv")[0]["a"] == "x\\ud800"
    assert json.loads((tmp_path / "out.jsonl").read_text())["a"] == "x\ud800"


def test_gzipped_output_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.csv.gz"):
        with OutputWriter(tmp_path / name, ("q",)) as writer:
            writer.write(answered())
    first = (tmp_path / "a.csv.gz").read_bytes()
    assert first == (tmp_path / "b.csv.gz").read_bytes()
    assert first[4:8] == bytes(4)  # the time stamp of RFC 1952
    assert gzip.decompress(first).startswith(b"q,prediction,")


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl"])
def test_the_output_appears_when_it_is_whole(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    with OutputWriter(out, ("q",)) as writer:
        for number in range(100):
            writer.write(make_row(number))
        partial = tmp_path / f"{name}.partial"
        assert partial.stat().st_size > 0  # flushed now and then
        assert not out.exists()
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_after_an_exception_the_partial_file_stays_and_the_output_is_untouched(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt), OutputWriter(out, ("q",)) as writer:
        writer.write(make_row())
        raise KeyboardInterrupt
    assert out.read_text() == "old"
    assert len(read_csv(tmp_path / "out.csv.partial")) == 1


def test_an_input_that_is_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output column 'prediction', 'status'"):
        OutputWriter(tmp_path / "out.csv", ("q", "status", "prediction"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("question_text\n")
    return path


def test_a_new_output_is_accepted_and_nothing_is_left_behind(table: Path) -> None:
    check_output(table.with_name("out.csv"), table, overwrite=False)
    assert list(table.parent.iterdir()) == [table]


def test_an_output_needs_a_suffix_that_can_be_written(table: Path) -> None:
    with pytest.raises(OutputError, match=r"must end in one of \.csv, \.csv\.gz, \.jsonl"):
        check_output(table.with_name("out.parquet"), table, overwrite=False)


def test_an_output_needs_a_folder(table: Path) -> None:
    with pytest.raises(OutputError, match=r"Run `mkdir -p '.*/not there'`"):
        check_output(table.parent / "not there" / "out.csv", table, overwrite=False)


def test_a_folder_that_cannot_be_written_to_is_refused(table: Path) -> None:
    with pytest.raises(OutputError, match="/proc cannot be written to"):
        check_output(Path("/proc/out.csv"), table, overwrite=False)


def test_the_input_is_never_the_output(table: Path) -> None:
    hard = table.with_name("hard.csv")
    hard.hardlink_to(table)
    soft = table.with_name("soft.csv")
    soft.symlink_to(table)
    for out in (table, hard, soft):
        with pytest.raises(OutputError, match="is the input file itself"):
            check_output(out, table, overwrite=True)


def test_an_existing_output_needs_the_word_to_overwrite(table: Path) -> None:
    out = table.with_name("out.csv")
    out.write_text("old")
    with pytest.raises(OutputError, match=r"exists.*--overwrite"):
        check_output(out, table, overwrite=False)
    check_output(out, table, overwrite=True)
    assert out.read_text() == "old"


def test_a_folder_is_no_output(table: Path) -> None:
    out = table.with_name("out.csv")
    out.mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(out, table, overwrite=True)


CELL = st.text(st.characters(codec="utf-8"), max_size=20) | st.text('\r\n",; ', max_size=6)


@settings(max_examples=60, deadline=None)
@given(cells=st.tuples(CELL, CELL))
def test_cells_are_read_back_as_they_were(
    cells: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.getbasetemp() / "cells.csv"
    with OutputWriter(out, ("a", "b")) as writer:
        writer.write(make_row(0, dict(zip("ab", cells))))
    (read,) = read_csv(out)
    assert (read["a"], read["b"]) == cells
