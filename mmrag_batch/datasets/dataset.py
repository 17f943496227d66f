"""What a published benchmark is to us: a folder as it was unpacked, read as rows of a table.

Adding one is a module with a function and an entry of `DATASETS`.
"""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrag_batch.errors import InputError, MissingError, OutputError
from mmrag_batch.extras import requires
from mmrag_batch.plugs import load, pick
from mmrag_batch.run.files import storing
from mmrag_batch.table.formats import open_writer

COLUMNS = (
    "id",
    "question_text",
    "question_image",
    "answer_choices",
    "documents",
    "relevant",
    "label",
    "answers",
)
Cells = dict[str, object]
Rows = Callable[[Path, "Pictures"], Iterator[Cells]]
"""Reads a folder: the rows, each with those of COLUMNS that it has, a `split`, and columns of its
own. Raises MissingError for a file that is not there and InputError for one of another layout."""
DATASETS: dict[str, Rows | str] = {
    "a-okvqa": "mmrag_batch.datasets.a_okvqa:read",
    "mmmu": "mmrag_batch.datasets.mmmu:read",
    "mrag-bench": "mmrag_batch.datasets.mrag_bench:read",
    "scienceqa": "mmrag_batch.datasets.scienceqa:read",
    "webqa": "mmrag_batch.datasets.webqa:read",
}


class Pictures:
    """Where the pictures of a table are: files of the benchmark stay where they are, and bytes
    inside its files become files in a folder beside the table, each content once."""

    def __init__(self, table: Path) -> None:
        self.root = table.parent.resolve()
        self.folder = table.with_name(table.name + ".images")
        self.missing = 0
        """Files that the benchmark names and does not have."""

    def of_file(self, file: Path) -> str:
        """The source of a picture that is a file. Raises InputError for one that lies where
        `predict` would not look: it opens what is below the table's folder alone."""
        self.missing += not file.is_file()
        if not file.resolve().is_relative_to(self.root):
            raise InputError(
                f"{file} is not below {self.root}, where images of the table are looked for. "
                "Write the table beside the benchmark's folder."
            )
        return str(file.resolve().relative_to(self.root))

    def of_bytes(self, data: bytes) -> str:
        """The source of a picture that is bytes."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(BytesIO(data)) as image:
                suffix = (image.format or "bin").lower()
        except (UnidentifiedImageError, OSError):
            suffix = "bin"  # `predict` says of that row what is wrong
        file = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.{suffix}"
        if not file.exists():
            self.folder.mkdir(exist_ok=True)
            file.write_bytes(data)
        return f"{self.folder.name}/{file.name}"


def import_dataset(
    name: str, directory: Path, table: Path, *, split: str | None = None, overwrite: bool = False
) -> tuple[int, int]:
    """Write a benchmark as a table, all of it or one `split`; how many rows, and how many pictures
    are named that are not there.

    Raises ConfigError for a name that is not known, OutputError for a table that is there unless it
    is to be replaced, MissingError where there is no such folder, file or split, and InputError.
    """
    read = load(pick(DATASETS, name, option="import"))
    if not directory.is_dir():
        raise MissingError(f"{directory} is no folder. Unpack the benchmark there.")
    if os.path.lexists(table) and not overwrite:
        raise OutputError(f"{table} is there. Choose another file, or add `--overwrite`.")
    pictures = Pictures(table)
    splits: dict[str, int] = {}
    with (
        storing(table),
        tempfile.TemporaryDirectory(dir=table.parent, prefix=f".{table.name}.") as temporary,
    ):
        rows = Path(temporary, "rows.jsonl")
        columns = dict.fromkeys(COLUMNS)  # in order; known whole when all rows are
        with rows.open("w", encoding="utf-8") as stream:
            for cells in _checked(name, directory, read(directory, pictures)):
                splits[str(cells["split"])] = splits.get(str(cells["split"]), 0) + 1
                if split is None or cells["split"] == split:
                    columns |= dict.fromkeys(cells)
                    stream.write(json.dumps(cells) + "\n")
        _write_table(rows, table, list(columns), Path(temporary, "table"))
        shutil.move(Path(temporary, "table"), table)
    if split is not None and split not in splits:
        table.unlink()
        raise MissingError(f"{directory} has no split {split!r}; it has {', '.join(splits)}.")
    rows_written = splits[split] if split is not None else sum(splits.values())
    return rows_written, pictures.missing


def _checked(name: str, directory: Path, rows: Iterator[Cells]) -> Iterator[Cells]:
    """The rows, with progress; what cannot be read of one is said as an InputError."""
    number = 0
    try:
        for cells in tqdm(rows, unit="row", disable=None):
            number += 1
            yield cells
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{directory}: row {number + 1} is not as {name} is published: "
            f"{type(error).__name__}: {error}."
        ) from error


def _write_table(rows: Path, table: Path, columns: list[str], target: Path) -> None:
    writer = open_writer(table, columns)
    is_packed = table.name.lower().endswith(".gz")
    with (
        rows.open(encoding="utf-8") as source,
        gzip.open(target, "xb") if is_packed else target.open("xb") as stream,
    ):
        stream.write(writer.header)
        for line in source:
            stream.write(writer.row(dict.fromkeys(columns) | json.loads(line)))
        stream.write(writer.end())


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises MissingError and InputError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{file} does not exist; it is a file of the benchmark.") from None
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error


def read_parquet(directory: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The rows of all Parquet files of a folder and those below, each with its file. Raises
    MissingError where there are none."""
    with requires("parquet"):
        from pyarrow.parquet import ParquetFile

    files = sorted(directory.rglob("*.parquet"))
    if not files:
        raise MissingError(f"{directory} holds no .parquet file; the benchmark is published so.")
    for file in files:
        with ParquetFile(file) as opened:
            for batch in opened.iter_batches(16):  # each row may hold many pictures
                yield from ((file, cells) for cells in batch.to_pylist())


def split_of(file: Path) -> str:
    """The split that a file of the hub holds by its name: `test-00000-of-00002.parquet`."""
    return file.name.partition("-")[0].removesuffix(".parquet")
