"""The answer table: its cells, its one-step appearance, and the outputs it refuses."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrag_batch.errors import InputError, OutputError
from mmrag_batch.records import (
    Answer,
    Document,
    Evidence,
    Prediction,
    Problem,
    Row,
    TextProbability,
)
from mmrag_batch.run.answers import answer_of
from mmrag_batch.table.output import OUTPUT_COLUMNS, RowFormat, check_output


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


def write_rows(path: Path, columns: tuple[str, ...], *rows: Row) -> None:
    row_format = RowFormat(path, columns)
    answers = (
        Answer("ok") if row.prediction is None and row.error is None else answer_of(row)
        for row in rows
    )
    lines = (row_format.row(row.cells, row.line, answer) for row, answer in zip(rows, answers))
    path.write_bytes(row_format.header + b"".join(lines))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_an_answer_fills_every_column(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    write_rows(out, ("q",), answered())
    assert read_csv(out) == [
        {
            "q": "What?",
            "prediction": "two",
            "prediction_index": "1",
            "confidence": "0.876543",
            "confidence_per_token": "",
            "choice_probabilities": "[0.123457, 0.876543]",
            "evidence": '[{"id": "d1", "score": 3.1235}, {"id": "é", "score": -1}]',
            "status": "ok",
            "error": "",
        }
    ]


def test_a_free_form_answer_has_no_index_and_no_probabilities(tmp_path: Path) -> None:
    row = make_row()
    row.prediction = Prediction("a cat")
    told = make_row()
    told.prediction = Prediction("a cat", text_probability=TextProbability(1.23456789e-9, 1 / 3))
    write_rows(tmp_path / "out.csv", ("q",), row, told)
    first, second = read_csv(tmp_path / "out.csv")
    assert list(first.values()) == ["What?", "a cat", "", "", "", "", "[]", "ok", ""]
    figures = ["1.23457e-09", "0.333333"]
    assert list(second.values()) == ["What?", "a cat", "", *figures, "", "[]", "ok", ""]


def test_an_error_row_says_why_and_predicts_nothing(tmp_path: Path) -> None:
    row = make_row()
    row.error = Problem("bad_row", "no")
    row.problems.append(Problem("image_missing", "a.png"))
    write_rows(tmp_path / "out.csv", ("q",), row)
    (cells,) = read_csv(tmp_path / "out.csv")
    assert (cells["status"], cells["error"]) == ("error", "bad_row: line 2: no")
    assert cells["prediction"] == ""


def test_a_degraded_row_lists_its_problems(tmp_path: Path) -> None:
    row = answered()
    row.problems += [Problem("image_missing", "a.png"), Problem("image_corrupt", "b.png")]
    write_rows(tmp_path / "out.csv", ("q",), row)
    (cells,) = read_csv(tmp_path / "out.csv")
    assert (cells["status"], cells["prediction"]) == ("degraded", "two")
    assert cells["error"] == "image_missing: a.png; image_corrupt: b.png"


def test_the_status_is_the_worst_that_happened() -> None:
    row = answered()
    assert answer_of(row).status == "ok"
    row.problems.append(Problem("image_missing", "a"))
    assert answer_of(row).status == "degraded"
    row.error = Problem("bad_row", "b")
    assert answer_of(row).status == "error"


def test_lines_end_in_lf_and_only_what_must_be_is_quoted(tmp_path: Path) -> None:
    write_rows(tmp_path / "out.csv", ("a", "b"), make_row(0, {"a": "x y", "b": 'c,"d"'}))
    data = (tmp_path / "out.csv").read_bytes()
    assert data == (
        b"a,b,prediction,prediction_index,confidence,confidence_per_token,choice_probabilities,"
        b"evidence,status,error\n"
        b'x y,"c,""d""",,,,,,[],ok,\n'
    )


def test_values_that_are_no_text_are_json_in_csv(tmp_path: Path) -> None:
    cells = {"a": ["x", "é"], "b": 1.5, "c": None, "d": True}
    write_rows(tmp_path / "out.csv", ("a", "b", "c", "d", "e"), make_row(0, cells))
    (read,) = read_csv(tmp_path / "out.csv")
    assert [read[name] for name in "abcde"] == ['["x", "é"]', "1.5", "", "true", ""]


def test_json_lines_keep_values_as_they_are(tmp_path: Path) -> None:
    cells = {"a": ["x", "\u2028"], "b": 1.5, "c": None}
    row = answered()
    row.cells = cells
    write_rows(tmp_path / "out.jsonl", ("a", "b", "c", "d"), row)
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    read = json.loads(line)
    assert list(read) == [*cells, *OUTPUT_COLUMNS]
    assert {name: read[name] for name in cells} == cells
    assert read["choice_probabilities"] == [0.123457, 0.876543]
    assert read["evidence"][0] == {"id": "d1", "score": 3.1235}
    assert (read["prediction_index"], read["error"]) == (1, None)


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    for name in ("out.csv", "out.jsonl"):
        write_rows(tmp_path / name, ("a",), make_row(0, {"a": "x\ud800"}))
    assert read_csv(tmp_path / "out.csv")[0]["a"] == "x\\ud800"
    assert json.loads((tmp_path / "out.jsonl").read_text())["a"] == "x\ud800"


def test_the_bytes_of_a_row_depend_on_the_row_alone(tmp_path: Path) -> None:
    row_format = RowFormat(tmp_path / "out.csv", ("q",))
    answer = answer_of(answered())
    first = row_format.row({"q": "What?"}, 2, answer)
    assert row_format.row({"q": 'a,"\r'}, 3, answer) != first
    assert row_format.row({"q": "What?"}, 2, answer) == first
    assert RowFormat(tmp_path / "out.csv", ("q",)).row({"q": "What?"}, 2, answer) == first


def test_json_lines_have_no_header(tmp_path: Path) -> None:
    assert RowFormat(tmp_path / "out.jsonl", ("q",)).header == b""


def test_an_input_that_is_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output column 'prediction', 'status'"):
        RowFormat(tmp_path / "out.csv", ("q", "status", "prediction"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("question_text\n")
    return path


def test_a_new_output_is_accepted_and_nothing_is_left_behind(table: Path) -> None:
    check_output(table.with_name("out.csv"), table)
    assert list(table.parent.iterdir()) == [table]


def test_an_output_needs_a_suffix_that_can_be_written(table: Path) -> None:
    with pytest.raises(OutputError, match=r"must end in one of \.csv, \.csv\.gz, \.tsv"):
        check_output(table.with_name("out.xlsx"), table)


def test_c05_an_output_needs_a_folder(table: Path) -> None:
    with pytest.raises(OutputError, match=r"Run `mkdir -p '.*/not there'`"):
        check_output(table.parent / "not there" / "out.csv", table)


def test_c05_a_folder_that_cannot_be_written_to_is_refused(table: Path) -> None:
    with pytest.raises(OutputError, match="/proc cannot be written to"):
        check_output(Path("/proc/out.csv"), table)


def test_c06_the_input_is_never_the_output(table: Path) -> None:
    hard = table.with_name("hard.csv")
    hard.hardlink_to(table)
    soft = table.with_name("soft.csv")
    soft.symlink_to(table)
    for out in (table, hard, soft):
        with pytest.raises(OutputError, match="is the input file itself"):
            check_output(out, table)


def test_a_folder_is_no_output(table: Path) -> None:
    out = table.with_name("out.csv")
    out.mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(out, table)


CELL = st.text(st.characters(codec="utf-8"), max_size=20) | st.text('\r\n",; ', max_size=6)


@settings(max_examples=60, deadline=None)
@given(cells=st.tuples(CELL, CELL))
def test_cells_are_read_back_as_they_were(
    cells: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.getbasetemp() / "cells.csv"
    write_rows(out, ("a", "b"), make_row(0, dict(zip("ab", cells))))
    (read,) = read_csv(out)
    assert (read["a"], read["b"]) == cells
