"""The answer table: every input column as it was, then the answer, one row at a time.

Rows go to `<name>.partial`; the output appears under its own name only when it is whole.
"""

import csv
import errno
import gzip
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, TextIO, cast

from mmrag_batch.errors import InputError, OutputError
from mmrag_batch.records import Row

OUTPUT_COLUMNS = (
    "prediction",
    "prediction_index",
    "confidence",
    "choice_probabilities",
    "evidence",
    "status",
    "error",
)
SUFFIXES = (".csv", ".csv.gz", ".jsonl")
FLUSH_EVERY = 64
"""Rows after which what is written so far can be read in the partial file."""

Status = Literal["ok", "degraded", "error"]


def status_of(row: Row) -> Status:
    """`error`: no answer; `degraded`: answered without its broken documents; else `ok`."""
    if row.error is not None:
        return "error"
    return "degraded" if row.problems else "ok"


def check_output(path: Path, input_path: Path, *, overwrite: bool) -> None:
    """Raise OutputError if `path` cannot become the output; call it before anything is loaded."""
    _check_suffix(path)
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder. Run `mkdir -p {shlex.quote(str(folder))}`.")
    if path.exists() and input_path.exists() and path.samefile(input_path):
        raise OutputError(f"{path} is the input file itself. Choose another output.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Choose a file in it as the output.")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists. Choose another output, or add `--overwrite`.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written to ({error.strerror}). Choose another folder."
        ) from None


class OutputWriter:
    """Writes the answer table; a context manager.

    A clean exit publishes the file under its name in one step. After an exception the partial file
    stays as it is, and a file that was there before is untouched. Raises InputError if the input
    already has one of OUTPUT_COLUMNS, OutputError for a suffix that cannot be written.
    """

    def __init__(self, path: Path, input_columns: Sequence[str]) -> None:
        _check_suffix(path)
        taken = [name for name in OUTPUT_COLUMNS if name in input_columns]
        if taken:
            raise InputError(
                f"The input already has the output column {', '.join(map(repr, taken))}. "
                "Rename it, or use the table that was put in before."
            )
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._columns = tuple(input_columns)
        self._is_csv = not path.name.lower().endswith(".jsonl")
        self._files = ExitStack()
        self._written = 0

    def __enter__(self) -> Self:
        try:
            binary: BinaryIO = self._files.enter_context(self._partial.open("wb"))
        except OSError as error:
            raise OutputError(f"{self._partial} cannot be created: {error.strerror}.") from error
        if self._path.name.lower().endswith(".gz"):  # no time stamp: same rows, same bytes
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=binary, mtime=0)
            binary = cast(BinaryIO, self._files.enter_context(packed))
        # Half a surrogate pair cannot be encoded; as `\ud800` it is what JSON calls it.
        text = TextIOWrapper(binary, "utf-8", errors="backslashreplace", newline="")
        self._stream = self._files.enter_context(text)
        if self._is_csv:
            # The csv module quotes a lone CR only if its own line end has one; see _LineFeeds.
            self._csv = csv.writer(_LineFeeds(self._stream), lineterminator="\r\n")
            self._csv.writerow((*self._columns, *OUTPUT_COLUMNS))
        return self

    def write(self, row: Row) -> None:
        """Write one row."""
        answer = _answer(row)
        if self._is_csv:
            cells = [row.cells.get(name) for name in self._columns]
            self._csv.writerow([_csv_cell(value) for value in (*cells, *answer.values())])
        else:
            known = {name: row.cells[name] for name in self._columns if name in row.cells}
            self._stream.write(_json(known | answer) + "\n")
        self._written += 1
        if self._written % FLUSH_EVERY == 0:
            self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()
        if kind is None:
            _sync(self._partial)
            self._partial.replace(self._path)
            _sync(self._path.parent)


class _LineFeeds:
    """Ends each row that `csv.writer` hands over with LF in place of CR LF."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: str) -> None:
        self._stream.write(row.removesuffix("\r\n") + "\n")


def _answer(row: Row) -> dict[str, object]:
    """The values of OUTPUT_COLUMNS; None where there is nothing to say."""
    answer: dict[str, object] = dict.fromkeys(OUTPUT_COLUMNS)
    prediction = row.prediction
    if prediction is not None:
        answer["prediction"] = prediction.text
        answer["prediction_index"] = prediction.index
        if prediction.index is not None and prediction.probabilities:
            probabilities = [round(value, 6) for value in prediction.probabilities]
            answer["confidence"] = probabilities[prediction.index]
            answer["choice_probabilities"] = probabilities
    answer["evidence"] = [
        {"id": item.document.id, "score": round(item.score, 4)} for item in row.evidence
    ]
    answer["status"] = status_of(row)
    problems = row.problems if row.error is None else [row.error]
    if problems:
        answer["error"] = "; ".join(f"{item.code}: {item.message}" for item in problems)
    return answer


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    # Parquet has values that JSON has not, such as dates: they are written as Python shows them.
    return json.dumps(value, ensure_ascii=False, default=str)


def _check_suffix(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise OutputError(f"{path}: the output must end in one of {', '.join(SUFFIXES)}.")


def _sync(path: Path) -> None:
    """Wait until a file or folder is on disk; not every network file system can, for a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
