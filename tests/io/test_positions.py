"""Reading a table from the end of any of its rows gives the rows after it, as if read in one go."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrag_batch.io.table import read_rows
from mmrag_batch.records import Position

CSV = (
    'question_text,note\r\nWhat?,"a\r\nb"\r\n\r\nWhy é?,"c ""d"""\r'
    'Who 🙂?,\u2028\n"one",short,long\n'
    'last,"no line end"'
)
JSONL = (
    '{"question_text": "é\u2028"}\n\n[1]\n'
    '{"question_text": "🙂", "note": 1}\r\n{"question_text": ""}'
)


def assert_any_row_is_a_place_to_begin(path: Path) -> None:
    rows = list(read_rows(path))
    assert rows[-1].end is not None
    for row in rows:
        assert row.end is not None
        assert list(read_rows(path, first=row.number + 1, start=row.end)) == rows[row.number + 1 :]


@pytest.mark.parametrize(
    ("name", "text"),
    [("in.csv", CSV), ("in.csv", "\ufeff" + CSV), ("in.csv.gz", CSV), ("in.jsonl", JSONL)],
)
def test_reading_begins_after_any_row(tmp_path: Path, name: str, text: str) -> None:
    data = text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert len(list(read_rows(path))) == (4 if name == "in.jsonl" else 5)
    assert_any_row_is_a_place_to_begin(path)
    assert [row.end for row in read_rows(path)][-1] == Position(
        len(data), len(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    )


def test_reading_begins_after_any_row_of_parquet_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    table = pyarrow.Table.from_pylist([{"question_text": f"{number}?"} for number in range(600)])
    parquet.write_table(table, path, row_group_size=290)
    rows = list(read_rows(path))
    assert len(rows) == 600
    for number in (0, 255, 256, 289, 290, 579, 580, 598, 599):
        end = rows[number].end
        assert end is not None
        assert list(read_rows(path, first=number + 1, start=end)) == rows[number + 1 :]


def test_rows_are_counted_from_the_first_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("question_text\na\nb\nc\nd\n")
    second = list(read_rows(path))[1]
    assert second.end is not None
    left = read_rows(path, range(2, 3), first=2, start=second.end)
    assert [(row.number, row.cells["question_text"]) for row in left] == [(2, "c")]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=6))
def test_reading_begins_after_any_row_of_any_text(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.jsonl").write_text(
        "\n".join(json.dumps({"question_text": text}, ensure_ascii=False) for text in texts)
    )
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    (folder / "any.csv").write_bytes("\n".join(["question_text", *quoted]).encode())
    assert_any_row_is_a_place_to_begin(folder / "any.jsonl")
    assert_any_row_is_a_place_to_begin(folder / "any.csv")
