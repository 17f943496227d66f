"""The answer table: every input column as it was, then the answer, one row at a time."""

import csv
import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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

Status = Literal["ok", "degraded", "error"]


def status_of(row: Row) -> Status:
    """`error`: no answer; `degraded`: answered without its broken documents; else `ok`."""
    if row.error is not None:
        return "error"
    return "degraded" if row.problems else "ok"


def check_output(path: Path, input_path: Path) -> None:
    """Raise OutputError if `path` cannot become the output; call it before anything is loaded."""
    _check_suffix(path)
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{folder} is no folder. Run `mkdir -p {shlex.quote(str(folder))}`.")
    if path.exists() and input_path.exists() and path.samefile(input_path):
        raise OutputError(f"{path} is the input file itself. Choose another output.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Choose a file in it as the output.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written to ({error.strerror}). Choose another folder."
        ) from None


class RowFormat:
    """How the rows of an answer table are written: `header`, then `row` for each of them.

    The bytes of a row depend on the row alone. Raises InputError if the input already has one of
    OUTPUT_COLUMNS, OutputError for a suffix that cannot be written.
    """

    def __init__(self, path: Path, input_columns: Sequence[str]) -> None:
        _check_suffix(path)
        taken = [name for name in OUTPUT_COLUMNS if name in input_columns]
        if taken:
            raise InputError(
                f"The input already has the output column {', '.join(map(repr, taken))}. "
                "Rename it, or use the table that was put in before."
            )
        self._columns = tuple(input_columns)
        self._is_csv = not path.name.lower().endswith(".jsonl")
        self._line = _Line()
        # The csv module quotes a lone CR only if its own line end has one; see _Line.
        self._csv = csv.writer(self._line, lineterminator="\r\n")

    @property
    def header(self) -> bytes:
        """What stands before the first row."""
        return self._in_csv((*self._columns, *OUTPUT_COLUMNS)) if self._is_csv else b""

    def row(self, row: Row) -> bytes:
        """One row, with its line end."""
        answer = _answer(row)
        if self._is_csv:
            cells = [row.cells.get(name) for name in self._columns]
            return self._in_csv([_csv_cell(value) for value in (*cells, *answer.values())])
        known = {name: row.cells[name] for name in self._columns if name in row.cells}
        return _encode(_json(known | answer) + "\n")

    def _in_csv(self, cells: Sequence[str]) -> bytes:
        self._csv.writerow(cells)
        return _encode(self._line.text)


class _Line:
    """What `csv.writer` wrote last, with LF at its end in place of CR LF."""

    text = ""

    def write(self, row: str) -> None:
        self.text = row.removesuffix("\r\n") + "\n"


def _encode(text: str) -> bytes:
    # Half a surrogate pair cannot be encoded; as `\ud800` it is what JSON calls it.
    return text.encode("utf-8", "backslashreplace")


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
