"""The answer table: every input column as it was, then the answer, one row at a time."""

import csv
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrag_batch.errors import InputError, OutputError
from mmrag_batch.records import Answer

OUTPUT_COLUMNS = (
    "prediction",
    "prediction_index",
    "confidence",
    "choice_probabilities",
    "evidence",
    "status",
    "error",
)
_ENCODE = json.JSONEncoder(ensure_ascii=False, default=str).encode
SUFFIXES = (".csv", ".csv.gz", ".jsonl")


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

    The bytes of a row depend on its cells, its line and its answer alone. Raises InputError if the
    input already has one of OUTPUT_COLUMNS, OutputError for a suffix that cannot be written.
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

    def row(self, cells: Mapping[str, object], line: int, answer: Answer) -> bytes:
        """One row, with its line end; `line` is where it starts in the input."""
        values = _values(line, answer)
        if self._is_csv:
            given = [cells.get(name) for name in self._columns]
            return self._in_csv([_csv_cell(value) for value in (*given, *values)])
        known = {name: cells[name] for name in self._columns if name in cells}
        return _encode(_json(known | dict(zip(OUTPUT_COLUMNS, values))) + "\n")

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


def _values(line: int, answer: Answer) -> tuple[object, ...]:
    """The values of OUTPUT_COLUMNS; None where there is nothing to say."""
    place = answer.index
    where = f"line {line}: " if answer.status == "error" else ""
    told = "; ".join(f"{problem.code}: {where}{problem.message}" for problem in answer.problems)
    return (
        answer.prediction,
        place,
        None if place is None or not answer.probabilities else answer.probabilities[place],
        None if place is None else answer.probabilities or None,
        [{"id": name, "score": score} for name, score in answer.evidence],
        answer.status,
        told or None,
    )


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    # Parquet has values that JSON has not, such as dates: they are written as Python shows them.
    return _ENCODE(value)


def _check_suffix(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise OutputError(f"{path}: the output must end in one of {', '.join(SUFFIXES)}.")
