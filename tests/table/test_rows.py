"""Tables of every format: what is read, and what is refused with which words."""

import codecs
import csv
import gzip
import json
import random
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrag_batch.errors import InputError, MissingError, UnavailableError
from mmrag_batch.records import Row
from mmrag_batch.table import csv as csv_format
from mmrag_batch.table import text
from mmrag_batch.table.rows import read_header, read_rows
from mmrag_batch.table.rows import scan as scan_records

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_csv(content: str) -> Path:
        path = tmp_path / "in.csv"
        path.write_bytes(content.encode())
        return path

    return write_csv


def scan(path: Path) -> int:
    """How many rows a table has, all of it read."""
    return sum(1 for _ in scan_records(path))


def codes(rows: list[Row]) -> list[str | None]:
    return [row.error.code if row.error else None for row in rows]


def test_a_row_is_read_with_its_number_line_and_cells(write: Write) -> None:
    path = write("id,question_text,note\nq1,What?,\nq2,Why?,x\n")
    first, second = read_rows(path)
    assert (first.number, first.line, first.id) == (0, 2, "q1")
    assert second.cells == {"id": "q2", "question_text": "Why?", "note": "x"}
    assert second.question is not None
    assert second.question.text == "Why?"


def test_a_row_without_id_is_called_by_its_number(write: Write) -> None:
    assert [row.id for row in read_rows(write("id,question_text\n,a\nx,b\nnan,c\n"))] == [
        "0",
        "x",
        "2",
    ]


def test_only_the_rows_asked_for_are_read(write: Write) -> None:
    path = write('question_text\na\nb\nc\nd\n"never closed')
    assert [row.number for row in read_rows(path, range(2))] == [0, 1]
    assert [row.cells["question_text"] for row in read_rows(path, [1, 3])] == ["b", "d"]
    assert [row.number for row in read_rows(write("question_text\na\n"), [0, 7])] == [0]


def test_e01_a_bom_is_stripped(write: Write) -> None:
    assert read_header(write("\ufeffquestion_text\nWhat?\n")) == ("question_text",)


@pytest.mark.parametrize("ends", ["\n\n\n", "\r\r\r", ("\r\n", "\n", "\r"), ("\r\n",) * 3])
def test_e02_every_line_end_is_read(write: Write, ends: Sequence[str]) -> None:
    path = write("question_text,note{}What?,1{}Why?,2{}".format(*ends))
    assert [(row.line, row.cells["note"]) for row in read_rows(path)] == [(2, "1"), (3, "2")]


def test_e03_the_line_of_a_row_counts_the_line_breaks_inside_cells(write: Write) -> None:
    rows = list(read_rows(write('question_text,note\n"a\nb",1\n\nc,2\n')))
    assert [(row.line, row.cells["question_text"]) for row in rows] == [(2, "a\nb"), (5, "c")]


def test_e17_unusual_unicode_is_kept(write: Write) -> None:
    question = "e\u0301 \u2028 \u05e9\u05dc\u05d5\u05dd \U0001f9ea \u00a0?"
    (row,) = read_rows(write(f"question_text\n{question}\n"))
    assert row.cells["question_text"] == question


def test_e11_a_header_without_rows_is_a_table(write: Write) -> None:
    path = write("question_text,label\n")
    assert read_header(path) == ("question_text", "label")
    assert scan(path) == 0
    assert list(read_rows(path)) == []


def assert_refused(path: Path, words: str) -> None:
    for read in (read_header, scan, lambda path: list(read_rows(path))):
        with pytest.raises(InputError, match=words) as caught:
            read(path)
        assert caught.value.exit_code == 65


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_e11_a_file_without_a_header_is_refused(write: Write, content: str) -> None:
    assert_refused(write(content), "is empty")


def test_e04_a_duplicate_column_is_named(write: Write) -> None:
    assert_refused(write("question_text,a,b,a\n1,2,3,4\n"), "duplicate column 'a'")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,question_txt\n", "Found: 'id', 'question_txt'. Did you mean 'question_txt'"),
        ("id,zzz\n", "no column 'question_text'. Found: 'id', 'zzz'. Add or rename one."),
    ],
)
def test_e05_a_missing_column_is_told_with_what_was_found(
    write: Write, content: str, words: str
) -> None:
    assert_refused(write(content), words)


@pytest.mark.parametrize(
    "content",
    [
        'question_text,note\na,b\nc,"d\ne,f\n',
        'question_text,note\na,b\nc,"d\ne,"f"\n',
        'question_text,note\na,b\nc,"d" d\n',
    ],
)
def test_e08_an_unterminated_quote_is_told_with_the_line_where_its_row_starts(
    write: Write, content: str
) -> None:
    path = write(content)
    with pytest.raises(InputError, match=r"in\.csv, line 3: a quote that opens"):
        scan(path)


def test_e09_a_byte_that_is_not_utf8_is_told_with_line_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(codecs.BOM_UTF8 + b"question_text\r\n" + "é".encode() + b"\r\ncaf\xe9\r\n")
    with pytest.raises(InputError, match=r"line 3: byte 0xe9 at offset 25.*`iconv -f CP1252"):
        scan(path)


def test_e17_utf16_is_refused_as_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("question_text\n", encoding="utf-16")
    with pytest.raises(InputError, match="line 1: byte 0xff at offset 0"):
        read_header(path)


def test_e13_two_rows_with_one_id_are_refused_by_their_lines(write: Write) -> None:
    path = write("id,question_text\na,1\nb,2\n,3\na,4\n,5\n")
    with pytest.raises(InputError, match="lines 2 and 5 have the same id 'a'"):
        scan(path)


def test_rows_without_ids_share_no_id(write: Write) -> None:
    assert scan(write("id,question_text\n,1\n,2\n")) == 2


def test_e07_short_and_long_rows_are_errors_of_those_rows_alone(write: Write) -> None:
    path = write("question_text,note\nonly\na,b\na,b,c\n")
    rows = list(read_rows(path))
    assert codes(rows) == ["bad_row", None, "bad_row"]
    assert rows[0].error is not None
    assert rows[0].error.message == "expected 2 cells, as the header has, not 1"
    assert rows[0].cells == {"question_text": "only"}
    assert scan(path) == 3


def test_e10_a_nul_byte_is_an_error_of_its_row(write: Write) -> None:
    rows = list(read_rows(write("question_text,note\na,\0\nb,c\n")))
    assert codes(rows) == ["bad_row", None]
    assert rows[0].error is not None
    assert "column 'note'" in rows[0].error.message


def test_e12_a_megabyte_of_text_is_read(write: Write) -> None:
    (row,) = read_rows(write("question_text\n" + "a" * 2**20 + "\n"))
    assert row.question is not None
    assert len(row.question.text) == 2**20


def test_e12_a_cell_over_the_limit_is_an_error_of_its_row(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_format, "MAX_CELL", 100)
    path = write(f"question_text,note\na,{'x' * 101}\nb,c\n")
    rows = list(read_rows(path))
    assert codes(rows) == ["bad_row", None]
    assert rows[1].cells == {"question_text": "b", "note": "c"}


def test_e08_a_quote_that_swallows_more_than_a_cell_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_format, "MAX_CELL", 100)
    path = write('question_text,note\na,"b\n' + "c,d\n" * 50)
    with pytest.raises(InputError, match="line 2: a quote that opens"):
        scan(path)


def test_e14_a_line_without_end_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "MAX_LINE", 1000)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"question_text\n" + b"a" * 10_000))
    with pytest.raises(InputError, match="line 2 is over 1,000 characters"):
        scan(path)


def test_e14_a_bomb_of_short_lines_is_refused_before_it_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"question_text\n" + b"a\n" * 300_000))
    assert scan(path) == 300_000
    monkeypatch.setattr(text, "UNCHECKED", 2**18)
    with pytest.raises(InputError, match=r"over 200 times its size.*gzip -d"):
        scan(path)


def test_gzipped_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.csv.gz"
    path.write_bytes(gzip.compress(b"question_text\nWhat?\n"))
    assert read_header(path) == ("question_text",)
    assert [row.cells for row in read_rows(path)] == [{"question_text": "What?"}]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip"])
def test_e14_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(b"question_text\n" + b"".join(b"%d?\n" % n for n in range(5000)))
    middle = len(packed) // 2
    damaged = {
        "truncated": packed[:middle],
        "flipped": packed[:middle] + bytes(200) + packed[middle + 200 :],
        "not gzip": b"question_text\nWhat?\n",
    }
    path = tmp_path / "in.csv.gz"
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError, match="truncated or no gzip file"):
        scan(path)


def test_k05_a_packed_file_that_is_damaged_twice_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(b"question_text\n" + b"\xff" * 50 + random.Random(0).randbytes(3000), 9)
    trailer = bytearray(whole)
    trailer[-5] ^= 1
    middle = bytearray(whole)
    middle[len(middle) // 2] ^= 255
    small = "1f8b080000000000020353ca4b2de7cac9cc4b55d251aad0a954d239bc52a7b034b5b824333f2fbe24b5e9"
    no_end = bytes.fromhex(f"{small}4487970b005e24000000")
    small = "1f8b080000000000020353ca494c4acd51d251ca4c011285a5a9c52599f979f125a915254abcff4af783"
    bad_end = bytes.fromhex(f"{small}c4ed95780127afc65b2a000000")
    cut = (middle[:-20], whole[:-3], whole[:5], whole + b"tail")
    for damaged in (trailer, middle, *cut, no_end, bad_end):
        path = tmp_path / "in.csv.gz"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"not UTF-8|truncated or no gzip file"):
            scan(path)


@pytest.mark.parametrize("name", ["absent.csv", "absent.jsonl", "absent.parquet"])
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        read_header(tmp_path / name)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "in.csv").mkdir()
    with pytest.raises(MissingError, match="not a regular file"):
        read_header(tmp_path / "in.csv")


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in one of \.csv, \.csv\.gz, \.tsv"):
        next(read_rows(tmp_path / "in.xlsx"))


# JSON Lines


def write_jsonl(folder: Path, *lines: object) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def test_json_lines_keep_their_values(tmp_path: Path) -> None:
    cells = {"question_text": "a", "documents": ["x", {"image": "b.png"}], "n": 1.5, "id": 7}
    (row,) = read_rows(write_jsonl(tmp_path, cells))
    assert row.cells == cells
    assert row.id == "7"
    assert row.question is not None
    assert [document.image for document in row.question.documents] == [None, "b.png"]


def test_the_header_of_json_lines_has_every_key(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"question_text": "a"}, "", {"label": 1, "question_text": "b"})
    assert read_header(path) == ("question_text", "label")
    assert [row.line for row in read_rows(path)] == [1, 3]


def test_broken_json_lines_are_errors_of_their_rows(tmp_path: Path) -> None:
    deep = '{"question_text": "a", "x": ' + "[" * 500 + "]" * 500 + "}"
    bottomless = '{"question_text": ' + "[" * 100_000
    path = write_jsonl(
        tmp_path, {"question_text": "a"}, '{"question_text', '["a"]', deep, bottomless
    )
    rows = list(read_rows(path))
    assert codes(rows) == [None, "bad_row", "bad_row", "bad_row", "bad_row"]
    assert rows[1].error is not None
    assert rows[1].error.message.startswith("not valid JSON")
    assert scan(path) == 5


def test_e10_half_a_surrogate_pair_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"question_text": "a \ud800"}, {"question_text": "\U0001f9ea"})
    assert codes(list(read_rows(path))) == ["bad_row", None]


def test_empty_json_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_header(write_jsonl(tmp_path))


def test_e13_a_duplicate_id_in_json_lines_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, {"question_text": "a", "id": 1}, {"question_text": "b", "id": "1"})
    with pytest.raises(InputError, match="lines 1 and 2"):
        scan(path)


# Parquet


def test_parquet_keeps_its_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, object]] = [
        {"question_text": "a", "answer_choices": ["x", "y"], "documents": [{"text": "t"}]},
        {"question_text": None, "answer_choices": None, "documents": None},
        {"question_text": "c", "answer_choices": [], "documents": [{"image": "i.png"}]},
    ]
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_header(path) == ("question_text", "answer_choices", "documents")
    assert scan(path) == 3
    first, second, third = read_rows(path)
    assert first.cells["answer_choices"] == ["x", "y"]
    assert codes([first, second, third]) == [None, "bad_question", None]
    assert third.line == 3
    assert third.question is not None
    assert third.question.documents[0].text is None


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "in.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="no Parquet file"):
        read_header(tmp_path / "in.parquet")


def test_parquet_without_pyarrow_names_the_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "in.parquet").touch()
    with pytest.raises(UnavailableError, match=r"pip install 'pyarrow>=18'"):
        read_header(tmp_path / "in.parquet")


# All of it


def test_e16_memory_does_not_grow_with_the_file(write: Write) -> None:
    def peak(rows: int) -> int:
        path = write("id,question_text,documents\n")
        with path.open("a", newline="") as stream:
            table = csv.writer(stream)
            table.writerows((n, "What?", '["a", "b"]') for n in range(rows))
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path)) == rows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(8000) < peak(400) + 200_000  # 25 bytes a row


CSV_BYTES = st.binary(max_size=120) | st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"a", b'["a"]']),
    max_size=60,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(content=CSV_BYTES, header=st.sampled_from([b"", b"question_text,documents\n"]))
def test_any_bytes_are_rows_or_a_refusal(
    content: bytes, header: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(header + content)
    try:
        rows = list(read_rows(path))
    except InputError as error:
        assert str(path) in str(error)
        return
    assert [row.number for row in rows] == list(range(len(rows)))
    assert all((row.question is None) != (row.error is None) for row in rows)


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, CELL), max_size=6))
def test_e03_what_csv_writes_is_read_back(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["question_text", "b", "c"])
        table.writerows(rows)
    assert [tuple(row.cells.values()) for row in read_rows(path)] == rows
    assert scan(path) == len(rows)


def test_a_message_names_columns_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("x" * 200_000 + "," + ",".join(f"c{n}" for n in range(999)) + "\n")
    with pytest.raises(InputError, match=r"c5.* and 950 more") as caught:
        read_header(path)
    assert len(str(caught.value)) < 1_000
