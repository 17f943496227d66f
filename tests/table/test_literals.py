"""Lists as Python, numpy, pandas and polars write them; and cells that would cost too much."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrag_batch.errors import RowError
from mmrag_batch.table.cells import parse_choices, parse_documents
from mmrag_batch.table.literals import parse_written
from mmrag_batch.table.rows import read_rows


@pytest.mark.parametrize(
    "cell",
    [
        "[np.str_('5 t'), np.str_('10 t')]",
        repr([np.str_("5 t"), np.str_("10 t")]),
        "[numpy.str_('5 t'), '10 t']",
        "array(['5 t', '10 t'], dtype=object)",
        repr(np.array(["5 t", "10 t"])),
        repr(np.array(["5 t", "10 t"], dtype=object)),
        "np.array(['5 t', '10 t'], dtype=np.dtype('O'), shape=(2,))",
        "<ArrowStringArray>\n['5 t', '10 t']\nLength: 2, dtype: string",
        'shape: (2,)\nSeries: \'\' [str]\n[\n\t"5 t"\n\t"10 t"\n]',
        'shape: (2,)\nSeries: \'answer_choices\' [str]\n[\n\t"5 t"\n\t"10 t"\n]\n',
        "['5 t', u'10 t',]",
    ],
)
def test_field_14_lists_of_numpy_pandas_and_polars_are_read(cell: str) -> None:
    assert parse_choices(cell) == ("5 t", "10 t")


@pytest.mark.parametrize("nothing", ["nan", "NaN", "NaT", "<NA>", "None", "np.nan", "null"])
def test_field_14_what_is_missing_in_a_record_is_missing(nothing: str) -> None:
    first, second = parse_documents(
        f"[{{'id': 'p1', 'text': 'It lifts.', 'image': {nothing}}},"
        f" {{'id': {nothing}, 'text': {nothing}, 'image': 'a.png'}}]"
    )
    assert (first.id, first.text, first.image) == ("p1", "It lifts.", None)
    assert (second.id, second.text, second.image) == ("1", None, "a.png")


def test_field_14_nan_in_json_is_missing_too() -> None:
    (document,) = parse_documents('[{"text": "x", "image": NaN, "title": NaN}]')
    assert (document.text, document.image) == ("x", None)
    (document,) = parse_documents([{"text": "x", "image": float("nan")}])
    assert document.image is None


def test_field_14_records_that_pandas_wrote_are_read_back() -> None:
    record = {
        "id": np.str_("p"),
        "text": 'it\'s "so"\n\\d+ \u00e9',
        "score": np.float64(0.5),
        "when": pd.Timestamp("2024-05-01"),
        "gone": pd.NA,
        "tags": np.array(["a", "b"], dtype=object),
        "deep": {"a": (1, -2.5e-3, True, np.False_)},
    }
    written = pd.DataFrame({"documents": [[record]]}).to_csv(index=False)
    cell = pd.read_csv(io.StringIO(written), keep_default_na=False)["documents"][0]
    (document,) = parse_documents(str(cell))
    assert (document.id, document.text) == ("p", record["text"])


@pytest.mark.parametrize(
    "cell",
    [
        "['a' 'b']",
        "[1 2]",
        "array(['a' 'b'], dtype=object)",
        "array(['a', ..., 'b'], dtype=object)",
        '"[\\"a\\", \\"b\\"]"',
        json.dumps(json.dumps(["a", "b"])),
        'shape: (3,)\nSeries: \'\' [str]\n[\n\t"a"\n\t"b"\n]',
        'shape: (2,)\nSeries: \'\' [str]\n[\n\t"a\u2026\n\t"b"\n]',
        "shape: (2,)\nSeries: '' [str]\n[\n\t\"a\n\tb\"\n]",
        "<ArrowStringArray>\n['a', ...\n 'b']\nLength: 9, dtype: string",
        "[a, b]",
        "['a', __import__('os').getcwd]",
        "['a'] + ['b']",
        "['a'",
        "{'a', 'b'}",
    ],
)
def test_field_14_what_has_two_readings_or_none_is_refused(cell: str) -> None:
    with pytest.raises(RowError, match="expected a list of texts, as JSON, found"):
        parse_choices(cell)


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("['a', np.float64(2.0)]", "item 1: expected a text, found 2.0"),
        ("['a', Timestamp('2024-05-01 00:00:00')]", "item 1: expected a text, found Timestamp"),
        ("['a', os.getcwd()]", r"item 1: expected a text, found os.getcwd\(\)"),
        ("['a', b'b']", "item 1: expected a text, found b'b'"),
        ("['a', nan]", "item 1: expected a text, found nothing"),
        ("['a', ['b']]", "item 1: expected a text, found"),
    ],
)
def test_field_14_an_item_that_is_no_text_is_named(cell: str, found: str) -> None:
    with pytest.raises(RowError, match=found):
        parse_choices(cell)


def test_field_14_numbers_are_read_as_they_were_written() -> None:
    text = "[1, -2, +3, 1.5, .5, 2., 1e3, inf, -inf, (1, 2), (3), {}, {'a': 1, 2: 'b'}]"
    inf = float("inf")
    numbers = [1, -2, 3, 1.5, 0.5, 2.0, 1000.0, inf, -inf, (1, 2), 3, {}, {"a": 1, 2: "b"}]
    assert parse_written(text) == numbers


SPENDTHRIFT = """
import resource, sys
from pathlib import Path
from mmrag_batch.table.rows import read_rows
_, hard = resource.getrlimit(resource.RLIMIT_DATA)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, ((used + 80 * 1024) * 1024, hard))
for row in read_rows(Path(sys.argv[1])):
    print(row.error.code if row.error else "ok")
"""
"""Reads a table in 80 MiB, which a million values would fill."""
SIZE = 3 * 2**20
COSTLY = {
    "lists": "[" + "[]," * (SIZE // 3 - 9) + "[]]",
    "records": "[" + '{"a": 1},' * (SIZE // 9 - 9) + "{}]",
    "texts": "[" + "'a'," * (SIZE // 4 - 9) + "nan]",
    "nested": "[" * (SIZE - 9),
    "nested literal": "(" * (SIZE - 9) + "'",
    "calls": "array(" * (SIZE // 6 - 9),
    "digits": "[" + "1" * (SIZE - 9) + "]",
    "digits of a literal": "[nan, " + "1" * (SIZE - 9) + "]",
    "a fraction": "[0." + "1" * (SIZE - 9) + "]",
    "backslashes": "['" + "\\d" * (SIZE // 2 - 9) + "']",
    "quotes": "[" + "'a' " * (SIZE // 4 - 9) + "]",
    "hexadecimal": "['a', 0x" + "f" * 5000 + "]",
    "octal": "[0o" + "7" * 5000 + "]",
    "an exponent": "['a', 1e" + "9" * 5000 + "]",
}


def test_k03_cells_that_would_cost_too_much_cost_their_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    with path.open("w") as stream:
        stream.write("question_text,documents\n")
        for cell in COSTLY.values():
            quoted = cell.replace('"', '""')
            stream.write(f'a,"{quoted}"\nb,[]\n')
    done = subprocess.run(
        [sys.executable, "-c", SPENDTHRIFT, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["bad_documents", "ok"] * len(COSTLY), done.stderr[-2000:]


def test_k03_a_line_of_json_that_would_cost_too_much_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        f'{{"question_text": "a", "documents": {COSTLY[one]}}}\n' for one in ("lists", "digits")
    ]
    path.write_text('{"question_text": "b"}\n'.join([*lines, ""]))
    assert [row.error.code if row.error else "ok" for row in read_rows(path)] == [
        "bad_row",
        "ok",
        "bad_row",
        "ok",
    ]


def test_k03_a_list_of_more_documents_than_a_row_has_is_told() -> None:
    with pytest.raises(RowError, match="expected at most 100,000 values"):
        parse_documents([""] * 100_001)


def test_field_30_text_may_be_long_and_full_of_marks() -> None:
    text = "1,234: [x] {y}\n" * 50_000
    for cell in (
        json.dumps([text]),
        repr([text, "b"]),
        repr([{"text": text, "image": float("nan")}]),
    ):
        assert parse_documents(cell)[0].text == text
