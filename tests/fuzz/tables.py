"""Random tables of every format that is read, as tools, people and broken disks leave them."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.damage import DAMAGES, damaged
from tests.table.arrow_types import NO_TIME, TYPES

TEXT_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
HUGE = 10 * 2**20 + 1
"""Characters of a cell that is too long."""
WORDS = (
    "What is it?",
    "the red cube",
    "12 coins",
    "größer 🦙\u2028",
    "a;b",
    "x, y",
    ' "q" ',
    "0.10",
)
JUNK: tuple[object, ...] = (
    None, float("nan"), float("inf"), "", " ", "nan", "None", True, -7, 1 << 70, -0.0, [], {},
    [None], "\0", "\ud800", "a\r\nb", "\r", "'", '"', "[" * 3000, "[]," * 3000, "<NA>", "{" * 500,
    "[" + "[]," * 3000 + "]", "9" * 5000, "0x" + "f" * 5000, "[" + "9" * 5000 + "]", "\\" * 3000,
    "['\\x", "[nan]", "['a' 'b']", '["\\ud800"]', "array(['a'], dtype=object)", "[np.str_('a')]",
    "a" * 99_999, "{'a': {'b': [1, (2, None)]}}", {"a": {"b": [1, None]}}, [["a"], ["b"]],
    [[]] * 99, {"image": 7}, [{"text": None}], [{"id": "1", "text": "a"}, "b"], [{"": ""}], "~",
    "<|image|>", "=1+1", "@x", "-1", "data:image/png;base64,AA*A", "https://127.0.0.1/a.png",
    "../../etc/passwd", "/dev/zero", "shape: (2,)\nSeries: '' [str]\n[\n\t\"a\"\n]", "\ufeff",
    "\x1a", "\x85", "1e999", "[1e999, -0]",
)  # fmt: skip
MARKS = "[]{}(),:'\"\\ 0x-+.eE\n\tnNaT\0\u00e9\u2026#|;="
EXTRA = (
    "note",
    "score",
    "größe",
    "choices",
    "Question_Text",
    "answer",
    "prediction",
    "status",
    " ",
)


def write_table(folder: Path, chance: Random, images: Sequence[str]) -> Path:
    """A table whose rows show `images` now and then, perhaps damaged."""
    suffix = chance.choice(SUFFIXES)
    path = folder / f"in{suffix}"
    columns = _columns(chance)
    rows = [[_cell(name, chance, images) for name in columns] for _ in range(_count(chance))]
    if suffix == ".parquet":
        data = _parquet(columns, rows, chance)
    else:
        text = _json_lines(columns, rows, chance) if "son" in suffix else None
        text = _csv(columns, rows, chance, suffix) if text is None else text
        data = _encode(text, chance)
    if suffix.endswith(".gz"):
        data = _maybe_damaged(data, chance, 0.1)
        data = gzip.compress(data, chance.choice((1, 9))) * chance.choice((1, 1, 1, 2))
    path.write_bytes(_maybe_damaged(data, chance, 0.25))
    return path


def _count(chance: Random) -> int:
    return chance.choice((0, 1, 2, 3, 8, 30))


def _columns(chance: Random) -> list[str]:
    ours = ("question_text", "question_image", "answer_choices", "documents", "label", "relevant")
    columns = [name for name in ours if name == "question_text" or chance.random() < 0.7]
    columns += chance.sample(EXTRA, chance.choice((0, 0, 1, 3)))
    if chance.random() < 0.3:
        columns.append("id")
    if chance.random() < 0.05:
        columns += chance.choices(columns, k=1)
    if chance.random() < 0.05:
        columns[0] = chance.choice(("question", "Question_text", "question_text ", "\0", ""))
    chance.shuffle(columns)
    return columns


def _cell(column: str, chance: Random, images: Sequence[str]) -> object:
    """A cell as it should be, as it may be, or anything."""
    if chance.random() < 0.12:
        return chance.choice(JUNK)
    if chance.random() < 0.0005:
        return chance.choice(("x", "[", "9", "[],", "'a',")) * (HUGE // 2)
    word = chance.choice
    cells: dict[str, Callable[[], object]] = {
        "question_text": lambda: word(WORDS),
        "question_image": lambda: word((*images, None, "absent.png")),
        "answer_choices": lambda: chance.sample(WORDS, chance.randint(0, 5)),
        "documents": lambda: [_document(chance, images) for _ in range(chance.randint(0, 4))],
        "label": lambda: word((*WORDS, 0, 1, 1.0, "1", "A", None, float("nan"))),
        "relevant": lambda: word(([0], ["0", "1"], [9], "[0, 1]", None, [1.0], "p")),
        "id": lambda: word((chance.randrange(10**9), f"q{chance.randrange(10**9)}", None)),
    }
    value = cells.get(column, lambda: word((*WORDS, *JUNK)))()
    return _written(value, chance) if chance.random() < 0.3 else value


def _document(chance: Random, images: Sequence[str]) -> object:
    text, image = chance.choice(WORDS), chance.choice((*images, "absent.png"))
    whole = {"id": chance.choice("abcdefg"), "text": text, "title": text, "image": image, "x": 1}
    some = {name: whole[name] for name in whole if chance.random() < 0.5}
    return chance.choice((text, image, some, some, {"bytes": None, "path": image}))


def _written(value: object, chance: Random) -> str:
    """A value as one tool or another writes it into a text, perhaps spoilt by hand."""
    way = chance.choice((json.dumps, repr, str, _as_array))
    text = way(value)
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        middle = chance.choice(
            (chance.choice(MARKS), "", text[at : at + 9] * 2, text[at:end][::-1])
        )
        text = text[:at] + middle + text[at if len(middle) == 1 else end :]
    return text


def _as_array(value: object) -> str:
    return repr(np.array(value, dtype=object))


def _text(value: object, chance: Random) -> str:
    return value if isinstance(value, str) else "" if value is None else _written(value, chance)


def _csv(
    columns: Sequence[str], rows: Sequence[Sequence[object]], chance: Random, suffix: str
) -> str:
    stream = io.StringIO(newline="")
    end = chance.choice(("\n", "\r\n", "\r"))
    usual = "\t" if "tsv" in suffix else ","
    writer = csv.writer(
        stream,
        delimiter=chance.choice((usual, usual, usual, ",", ";", "\t", "|")),
        lineterminator=end,
        quoting=chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    )
    if chance.random() < 0.05:
        stream.write(f"sep={chance.choice(',;|')}{end}")
    writer.writerow([*columns, *[""] * chance.choice((0, 0, 0, 2))])
    for row in rows:
        cells = [_text(value, chance) for value in row]
        if chance.random() < 0.05:
            cells = chance.choice((cells[:-1], [*cells, "more"], [*cells, ""], [], cells * 2))
        writer.writerow(cells)
        if chance.random() < 0.02:
            stream.write(chance.choice((end, '"', "\0" + end, "x" * 200_000, "\r", '"a"b' + end)))
    return stream.getvalue()


def _json_lines(columns: Sequence[str], rows: Sequence[Sequence[object]], chance: Random) -> str:
    lines = []
    for row in rows:
        pairs = [pair for pair in zip(columns, row) if chance.random() < 0.95]
        line = json.dumps(dict(pairs), ensure_ascii=chance.random() < 0.5)
        lines.append(line if chance.random() < 0.95 else chance.choice((line[:-1], line * 2)))
        if chance.random() < 0.05:
            lines.append(str(_text(chance.choice(JUNK), chance)))
    return "".join(line + chance.choice(("\n", "\n", "\r\n")) for line in lines)


def _encode(text: str, chance: Random) -> bytes:
    usual = ("utf-8",) * 16
    encoding = chance.choice((*usual, "utf-8-sig", "utf-16", "cp1252", "shift_jis", "utf-32"))
    errors = "surrogatepass" if encoding == "utf-8" and chance.random() < 0.05 else "replace"
    return text.encode(encoding, errors)


def _parquet(columns: Sequence[str], rows: Sequence[Sequence[object]], chance: Random) -> bytes:
    kinds = [_arrow(column, [row[at] for row in rows], chance) for at, column in enumerate(columns)]
    names = list(columns)
    for name in chance.sample([*TYPES], chance.choice((0, 1, 3))):
        kind, value, _ = TYPES[name]
        values = [chance.choice((value, None)) for _ in rows]
        kinds.append(pa.array(values, kind))
        names.append(name)
    if chance.random() < 0.1:
        kind, value = chance.choice(NO_TIME)
        whole = pa.int32() if kind.bit_width == 32 else pa.int64()
        kinds.append(pa.array([value] * len(rows), whole).view(kind))
        names.append("when")
    stream = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(kinds, names=names),
        stream,
        compression=chance.choice(("none", "snappy", "gzip", "zstd", "brotli", "lz4")),
        row_group_size=chance.choice((1, 3, 1000)),
        use_dictionary=chance.random() < 0.7,
        data_page_version=chance.choice(("1.0", "2.0")),
    )
    return stream.getvalue()


def _arrow(column: str, values: Sequence[object], chance: Random) -> Any:
    """A column of the type that its values have, where they have one; else of texts."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    wanted: dict[str, Sequence[Any]] = {
        "question_image": (struct, pa.binary(), pa.string()),
        "answer_choices": (pa.list_(pa.string()), pa.large_list(pa.string_view())),
        "documents": (pa.list_(pa.string()), pa.list_(struct), pa.list_(pa.binary())),
        "label": (pa.int64(), pa.float32(), pa.dictionary(pa.int8(), pa.string()), pa.bool_()),
        "relevant": (pa.list_(pa.int16()), pa.list_(pa.float64()), pa.int8()),
        "id": (pa.int64(), pa.binary(), pa.uuid()),
    }
    kind = chance.choice((*wanted.get(column, (pa.large_string(),)), pa.string(), None))
    kept = [value if chance.random() < 0.9 else None for value in values]
    try:
        array = pa.array(kept, kind)
        if "struct<>" not in str(array.type):  # which no file can hold
            return array
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    if kind is not None and chance.random() < 0.6:
        return _made_up(kind, len(values), chance)
    texts = [_text(value, chance).encode(errors="replace").decode() for value in values]
    return pa.array(texts, pa.string())


def _made_up(kind: Any, count: int, chance: Random) -> Any:
    """Values of a type, whatever it is."""
    if pa.types.is_struct(kind):
        picture = {"bytes": chance.choice((None, b"", b"\x89PNG", b"\0" * 99)), "path": "a.png"}
        return pa.array([picture] * count, kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _made_up(kind.value_type, 2, chance).to_pylist()
        return pa.array([inner] * count, kind)
    value: object = chance.randrange(100)
    if pa.types.is_boolean(kind):
        value = True
    elif kind == pa.uuid():
        return pa.array([chance.randbytes(16) for _ in range(count)], kind)
    elif "binary" in str(kind):
        value = chance.randbytes(9)
    elif "string" in str(kind):
        value = chance.choice(WORDS)
    return pa.array([value] * count, kind)


def _maybe_damaged(data: bytes, chance: Random, share: float) -> bytes:
    if chance.random() < share:
        return damaged(chance.choice(DAMAGES), data, chance.randbytes(99), chance)
    return data
