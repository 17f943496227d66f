"""Parquet: pictures as bytes, types that JSON has not, an output with types, and files that unpack
to more than they should."""

import csv
import io
import json
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.errors import InputError, RowError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.records import Answer
from mmrag_batch.table import parquet as parquet_format
from mmrag_batch.table.cells import parse_question
from mmrag_batch.table.output import OUTPUT_COLUMNS, RowFormat
from mmrag_batch.table.rows import read_header, read_records, read_rows
from tests.table.arrow_types import NO_TIME, TYPES


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def every_type(path: Path) -> Path:
    columns = {name: pa.array([value, None], kind) for name, (kind, value, _) in TYPES.items()}
    return write(path, {"question_text": ["a", "b"], **columns})


def predict(table: Path, *outputs: str) -> list[Path]:
    paths = [table.with_name(name) for name in outputs]
    for out in paths:
        words = ["predict", str(table), str(out), "--engine", "scripted", "--device", "cpu"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    return paths


def as_output(path: Path, out: Path) -> bytes:
    """The bytes of an output with that name, for each of its rows the same answer."""
    row_format = RowFormat(out, read_header(path), path)
    answer = Answer("ok", "x", 1, (0.25, 0.75), (("0", 1.5),))
    rows = [row_format.row(one.cells, one.line, answer) for one in read_records(path)]
    data = b"".join([row_format.header, *rows, row_format.end()])
    out.write_bytes(data)
    return data


@pytest.mark.parametrize("name", TYPES)
def test_field_13_every_type_is_a_plain_text_in_csv(tmp_path: Path, name: str) -> None:
    text = as_output(every_type(tmp_path / "in.parquet"), tmp_path / "out.csv").decode()
    first, second = csv.DictReader(io.StringIO(text))
    assert (first[name], second[name]) == (TYPES[name][2], "")


def test_field_13_every_type_is_json_that_has_a_standard(tmp_path: Path) -> None:
    data = as_output(every_type(tmp_path / "in.parquet"), tmp_path / "out.jsonl").decode()

    def refuse(token: str) -> None:
        raise AssertionError(token)

    first, second = (json.loads(line, parse_constant=refuse) for line in data.splitlines())
    assert first["dates"] == ["2024-05-01"]
    assert first["decimal"] == "1.50"
    assert first["nan"] is None
    assert first["numbers"] == [1.0, None, None]
    assert second["record"] is None


def test_field_13_nan_that_json_lines_held_is_null_in_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"question_text": "a", "x": NaN, "y": [{"z": -Infinity}], "n": 1e3}\n')
    line = as_output(path, tmp_path / "out.jsonl").decode()
    assert line.startswith('{"question_text": "a", "x": null, "y": [{"z": "-inf"}], "n": 1000.0, ')


def test_e10_half_a_surrogate_pair_is_written_as_json_calls_it(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"question_text": "a", "\\ud800": "\\ud801"}\n')
    as_output(path, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["\\ud800"].to_pylist() == ["\\ud801"]


def test_field_13_parquet_keeps_the_types_and_adds_those_of_the_answer(tmp_path: Path) -> None:
    path = every_type(tmp_path / "in.parquet")
    as_output(path, tmp_path / "out.parquet")
    table, before = pq.read_table(tmp_path / "out.parquet"), pq.read_table(path)
    for name in before.column_names:  # NaN is not equal to itself
        same = table[name].equals(before[name])
        assert same or (name in {"nan", "numbers"} and str(table[name]) == str(before[name]))
    assert table.schema.types[: len(before.schema)] == before.schema.types
    answers = dict(zip(OUTPUT_COLUMNS, table.schema.types[len(before.schema) :]))
    assert answers == {
        "prediction": pa.string(),
        "prediction_index": pa.int64(),
        "confidence": pa.float64(),
        "confidence_per_token": pa.float64(),
        "choice_probabilities": pa.list_(pa.float64()),
        "evidence": pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64())])),
        "status": pa.string(),
        "error": pa.string(),
    }
    assert table["evidence"].to_pylist()[0] == [{"id": "0", "score": 1.5}]


def test_field_13_the_same_rows_give_the_same_parquet_group_by_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrag_batch.table.parquet_writer.GROUP_ROWS", 128)
    path = write(tmp_path / "in.parquet", {"question_text": [f"q{n}" for n in range(300)]})
    row_format = RowFormat(Path("out.parquet"), read_header(path), path)
    sizes = [len(row_format.row(one.cells, 1, Answer("ok"))) for one in read_records(path)]
    assert [number for number, size in enumerate(sizes, 1) if size] == [128, 256]
    assert as_output(path, tmp_path / "a.parquet") == as_output(path, tmp_path / "b.parquet")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [128, 128, 44]


def test_field_13_other_tables_become_parquet_too(tmp_path: Path) -> None:
    lines = [
        {"question_text": "a", "n": 1, "x": 1, "yes": True, "list": ["b"], "mixed": 1},
        {"question_text": "c", "n": None, "x": 0.5, "mixed": "d", "huge": 2**70},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    as_output(path, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    kinds = [str(table.schema.field(name).type) for name in ("n", "x", "yes", "list", "mixed")]
    assert kinds == ["int64", "double", "bool", "string", "string"]
    assert table.to_pylist()[0] | {"n": 1, "list": '["b"]', "mixed": "1"} == table.to_pylist()[0]
    assert table["huge"].to_pylist() == [None, str(2**70)]
    (tmp_path / "in.csv").write_text("question_text,n\na,1\n")
    as_output(tmp_path / "in.csv", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == ["1"]


def test_field_13_predict_writes_parquet_that_evaluate_reads(tmp_path: Path) -> None:
    columns = {
        "question_text": ["a", "b"],
        "answer_choices": [["x", "y"]] * 2,
        "label": ["x", "y"],
        "when": pa.array([0, 1], pa.timestamp("s")),
    }
    (out,) = predict(write(tmp_path / "in.parquet", columns), "out.parquet")
    assert pq.read_table(out)["when"].type == pa.timestamp("ms")
    done = CliRunner().invoke(app, ["evaluate", str(out), "--json"])
    assert json.loads(done.output)["overall"]["accuracy"]["rows"] == 2


def test_field_12_pictures_of_a_table_are_read_and_written_as_what_they_are(tmp_path: Path) -> None:
    red, blue = png(), png("blue")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": red, "path": "red.png"}, {"bytes": blue, "path": None}, None]
    documents = [[cells[1], cells[0]], [], None]
    path = write(
        tmp_path / "in.parquet",
        {
            "question_text": ["a", "b", "c"],
            "question_image": pa.array(cells, kind),
            "answer_choices": [["x", "y"]] * 3,
            "documents": pa.array(documents, pa.list_(kind)),
        },
    )
    out, lines, same = predict(path, "out.csv", "out.jsonl", "out.parquet")
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["ok"] * 3
    pictures = [row["question_image"] for row in rows]
    assert pictures == ["red.png", f"sha256:{sha256(blue).hexdigest()}", ""]
    assert json.loads(rows[0]["documents"]) == [pictures[1], "red.png"]
    assert len(json.loads(rows[0]["evidence"])) == 2
    assert json.loads(lines.read_text().splitlines()[0])["question_image"] == "red.png"
    before, after = pq.read_table(path), pq.read_table(same)
    assert after.select(before.column_names).equals(before)


@pytest.mark.parametrize(
    ("cell", "colour"),
    [
        (png(), (255, 0, 0)),
        ({"bytes": png("blue"), "path": None}, (0, 0, 255)),
        ({"bytes": png("blue"), "path": "not-there.png"}, (0, 0, 255)),
        ({"bytes": None, "path": "a.png"}, (0, 128, 0)),
    ],
)
def test_field_12_a_picture_is_its_bytes_else_its_path(
    tmp_path: Path, cell: object, colour: tuple[int, ...]
) -> None:
    (tmp_path / "a.png").write_bytes(png("green"))
    documents = [cell, {"id": "x", "text": "t", "image": cell}]
    question = parse_question(
        {"question_text": "a", "question_image": cell, "documents": documents}
    )
    images = ImageLoader(tmp_path)
    sources = [question.image, *(document.image for document in question.documents)]
    assert [images.load(str(source)).getpixel((0, 0)) for source in sources] == [colour] * 3
    assert question.documents[1].text == "t"


def test_field_12_no_picture_is_none(tmp_path: Path) -> None:
    nothing = {"bytes": None, "path": None}
    assert parse_question({"question_text": "a", "question_image": nothing}).image is None
    assert parse_question({"question_text": "a", "question_image": b""}).image is None
    with pytest.raises(RowError, match="`text` or an `image`"):
        parse_question({"question_text": "a", "documents": [nothing]})


@pytest.mark.parametrize(("kind", "value"), NO_TIME)
def test_k04_a_time_that_no_calendar_has_passes_through(
    tmp_path: Path, kind: Any, value: int
) -> None:
    numbers = pa.array([value, 0], pa.int64() if kind != pa.date32() else pa.int32())
    path = write(tmp_path / "in.parquet", {"question_text": ["a", "b"], "t": numbers.cast(kind)})
    assert [row.error for row in read_rows(path)] == [None, None]
    assert str(value).strip("-") in as_output(path, tmp_path / "out.csv").decode()
    as_output(path, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["t"].cast(numbers.type).to_pylist()[1] == 0


def test_k04_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    struct = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    documents = pa.ListArray.from_arrays([0, 1], struct)
    path = write(tmp_path / "in.parquet", {"question_text": ["a"], "documents": documents})
    with pytest.raises(InputError, match="'documents' has two fields of one name"):
        list(read_rows(path))


def test_k04_a_cell_over_the_limit_is_an_error_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_format, "MAX_CELL", 1000)
    long = ["x" * 400, "y" * 700]
    columns = {
        "question_text": ["a", "b", "c", "d"],
        "documents": [["a"], long, ["x" * 900], long],
        "picture": [b"a" * 2000, b"a", b"a", None],
    }
    first, second, third, fourth = read_rows(write(tmp_path / "in.parquet", columns))
    assert first.error is not None
    assert first.error.message == "column 'picture': a cell is over 1,000 bytes"
    assert second.error is not None
    assert "'documents'" in second.error.message
    assert (third.error, fourth.error is None) == (None, False)
    assert second.cells["picture"] is not None


SPENDTHRIFT = """
import sys
from pathlib import Path
import numpy, pyarrow.parquet
from mmrag_batch.errors import InputError
from mmrag_batch.table.rows import read_rows
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10
Path("/proc/self/clear_refs").write_text("5")
before = peak()
for name in sys.argv[1:]:
    try:
        rows = [row.error for row in read_rows(Path(name)) if row.error]
        print(len(rows), "errors")
    except InputError as error:
        print(error.exit_code)
print(peak() - before)
"""


def test_k04_a_small_file_that_unpacks_to_gigabytes_is_refused_in_little_memory(
    tmp_path: Path,
) -> None:
    same = pa.array([0] * 2048, pa.int32())
    text = pa.DictionaryArray.from_arrays(same, pa.array(["x" * 2**20]))
    texts = pa.ListArray.from_arrays(
        pa.array([0, 2**20], pa.int32()),
        pa.DictionaryArray.from_arrays(pa.array([0] * 2**20, pa.int32()), pa.array(["x" * 2048])),
    )
    packed = [f"{number}{'x' * 8 * 2**20}" for number in range(40)]
    files = [
        write(tmp_path / "shared.parquet", {"question_text": text}),
        write(tmp_path / "list.parquet", {"question_text": ["a"], "documents": texts}),
        write(
            tmp_path / "packed.parquet",
            {"question_text": packed},
            compression="zstd",
            use_dictionary=False,
        ),
    ]
    del packed
    assert max(file.stat().st_size for file in files) < 2**21
    done = subprocess.run(
        [sys.executable, "-c", SPENDTHRIFT, *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
    )
    *codes, peak = done.stdout.splitlines()
    assert codes == ["65", "65", "65"]
    assert int(peak) < 400  # MiB; what they say is in them takes 2,048


def test_k04_a_damaged_file_is_refused_or_read(tmp_path: Path) -> None:
    whole = every_type(tmp_path / "whole.parquet").read_bytes()
    path, chance = tmp_path / "in.parquet", random.Random(4)
    seen = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            for row in read_rows(path):
                str(row.cells.get("moment"))
            seen.add("read")
        except InputError:
            seen.add("refused")
    assert seen == {"read", "refused"}
