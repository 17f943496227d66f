"""Tables with other delimiters, as Excel and others write them, and packed ones."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.records import Answer
from mmrag_batch.table.formats import describe
from mmrag_batch.table.output import RowFormat
from mmrag_batch.table.rows import read_header, read_rows

ROWS = [
    {"question_text": "What; is, it|really?", "label": "10 t", "documents": '["a; b", "c"]'},
    {"question_text": "How\tmany?", "label": "", "documents": '[{"id": "faq", "text": "x"}]'},
]


def write(path: Path, delimiter: str, before: str = "", line_end: str = "\r\n") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        stream.write(before)
        table = csv.DictWriter(stream, ROWS[0], delimiter=delimiter, lineterminator=line_end)
        table.writeheader()
        table.writerows(ROWS)
    return path


@pytest.mark.parametrize("before", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("name", "delimiter", "word"),
    [
        ("in.csv", ";", "semicolons"),
        ("in.csv", "\t", "tabs"),
        ("in.csv", "|", "bars"),
        ("in.csv", ",", "commas"),
        ("in.tsv", "\t", "tabs"),
        ("in.tsv", ",", "commas"),
    ],
)
def test_field_19_the_delimiter_of_a_table_is_found_and_said(
    tmp_path: Path, name: str, delimiter: str, word: str, before: str
) -> None:
    path = write(tmp_path / name, delimiter, before)
    assert [row.cells for row in read_rows(path)] == ROWS
    assert describe(path, read_header(path)).startswith(f"CSV with {word}, 3 columns")
    assert f"CSV with {word}" in CliRunner().invoke(app, ["validate", str(path)]).output


@pytest.mark.parametrize("head", ["sep=;\r\n", '"sep=;"\n', "\ufeffsep=;\n", "sep=^\n"])
def test_field_19_excels_line_is_obeyed_and_lines_are_counted_with_it(
    tmp_path: Path, head: str
) -> None:
    delimiter = "^" if "^" in head else ";"
    rows = list(read_rows(write(tmp_path / "in.csv", delimiter, head)))
    assert [row.cells for row in rows] == ROWS
    assert [row.line for row in rows] == [3, 4]


@pytest.mark.parametrize(
    "header",
    [
        'question_text,"note; or; not; or; what"',
        "question_text,note; or; not",
        "question_text,a;b;c;d|e|f|g",
        "question_text",
        "question_text,documents;label",
    ],
)
def test_field_19_a_header_that_commas_part_is_not_parted_otherwise(
    tmp_path: Path, header: str
) -> None:
    path = tmp_path / "in.csv"
    cells = next(csv.reader([header]))
    path.write_text(f"{header}\n{','.join('x' for _ in cells)}\n")
    assert read_header(path) == tuple(cells)
    assert [row.error for row in read_rows(path)] == [None]


def test_field_19_a_table_of_other_names_is_parted_too(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("Frage, bitte;prompt;options\nja;Why?;[]\n")
    names = {"question_text": "prompt"}
    assert read_header(path, names) == ("Frage, bitte", "prompt", "options")
    (row,) = read_rows(path, names=names)
    assert row.cells == {"Frage, bitte": "ja", "prompt": "Why?", "options": "[]"}


def test_field_19_columns_without_a_name_at_the_end_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("question_text;label;;\nWhy?;a;;\nHow?;b\nWhat?;c;;x\n")
    assert read_header(path) == ("question_text", "label")
    first, second, third = read_rows(path)
    assert (first.cells, first.error) == ({"question_text": "Why?", "label": "a"}, None)
    assert second.error is None
    assert third.error is not None
    assert third.error.message == "expected 2 cells, as the header has, not 4"


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.ndjson", "in.ndjson.gz"])
def test_field_19_json_lines_are_read_by_each_of_their_names(tmp_path: Path, name: str) -> None:
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [row.cells for row in read_rows(path)] == ROWS


def test_field_19_a_packed_tsv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "in.tsv", "\t").read_bytes()))
    assert [row.cells for row in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("name", "unpack"),
    [("out.tsv", bytes), ("out.tsv.gz", gzip.decompress), ("out.ndjson.gz", gzip.decompress)],
)
def test_field_19_an_output_is_what_its_name_says(
    tmp_path: Path, name: str, unpack: Callable[[bytes], bytes]
) -> None:
    table, out = write(tmp_path / "in.csv", ";"), tmp_path / name
    words = ["predict", str(table), str(out), "--engine", "scripted", "--device", "cpu"]
    assert CliRunner().invoke(app, words).exit_code == 0
    text = unpack(out.read_bytes()).decode()
    if "tsv" in name:
        assert text.startswith("question_text\tlabel\tdocuments\tprediction\t")
    assert [dict(row.cells) | ROWS[row.number] for row in read_rows(out)] == [
        dict(row.cells) for row in read_rows(out)
    ]


def test_field_19_an_output_with_commas_stays_one_whatever_the_input(tmp_path: Path) -> None:
    row_format = RowFormat(Path("out.csv"), ("a;b",))
    assert row_format.header.startswith(b"a;b,prediction,")
    assert row_format.row({"a;b": "x;y"}, 2, Answer("ok")).startswith(b"x;y,")
    assert row_format.end() == b""
