"""The answer table: every input column as it was, then the answer, one row at a time."""

import shlex
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from mmrag_batch.errors import InputError, OutputError
from mmrag_batch.masking import mask
from mmrag_batch.records import Answer
from mmrag_batch.remote import find_url
from mmrag_batch.table.formats import find_writer, open_writer

OUTPUT_COLUMNS = (
    "prediction",
    "prediction_index",
    "confidence",
    "confidence_per_token",
    "choice_probabilities",
    "evidence",
    "status",
    "error",
)


def check_output(path: Path, input_path: Path) -> None:
    """Raise OutputError if `path` cannot become the output; call it before anything is loaded."""
    find_writer(path)
    if url := find_url(path):
        here = f"{shlex.quote(path.name)} --upload {shlex.quote(mask(url.rpartition('/')[0]))}"
        raise OutputError(
            "OUTPUT is a file here, with its answers beside it. To write it to an object store as "
            f"well, give `{here}`."
        )
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


def check_names_are_free(input_columns: Sequence[str]) -> None:
    """Raise InputError if the input already has one of OUTPUT_COLUMNS."""
    duplicates = [name for name in OUTPUT_COLUMNS if name in input_columns]
    if duplicates:
        raise InputError(
            f"The input already has the output column {', '.join(map(repr, duplicates))}. "
            "Rename it, or use the table that was put in before."
        )


def check_written(path: Path, columns: Container[str], needed: Iterable[str]) -> None:
    """Raise InputError unless a table has the columns that are `needed` of what `predict` wrote."""
    if missing := [name for name in needed if name not in columns]:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; give the file that `predict` wrote."
        )


class RowFormat:
    """How the rows of an answer table are written: `header`, then `row` for each, then `end`.

    The bytes of rows depend on their cells, lines and answers alone, and on the types that `table`,
    the input, has for them. Raises InputError if the input already has one of OUTPUT_COLUMNS,
    OutputError for a suffix that cannot be written.
    """

    def __init__(self, path: Path, input_columns: Sequence[str], table: Path | None = None) -> None:
        check_names_are_free(input_columns)
        self._writer = open_writer(path, (*input_columns, *OUTPUT_COLUMNS), table)
        self.header = self._writer.header
        self.end = self._writer.end

    def row(self, cells: Mapping[str, object], line: int, answer: Answer) -> bytes:
        """One row, with its line end; `line` is where it starts in the input."""
        return self._writer.row({**cells, **answer_cells(line, answer)})


def confidence_of(answer: Answer) -> float | None:
    """The probability of an answer, shown or withheld; None where no engine told one."""
    if answer.probabilities:
        return max(answer.probabilities)
    return None if answer.text_probability is None else answer.text_probability.whole


def answer_cells(line: int, answer: Answer) -> dict[str, object]:
    """What stands in OUTPUT_COLUMNS; None where there is nothing to say."""
    written = answer.text_probability
    prefix = f"line {line}: " if answer.status == "error" else ""
    error = "; ".join(f"{problem.code}: {prefix}{problem.message}" for problem in answer.problems)
    values = (
        answer.prediction,
        answer.index,
        confidence_of(answer),
        None if written is None else written.per_token,
        answer.probabilities or None,
        [{"id": name, "score": score} for name, score in answer.evidence],
        answer.status,
        error or None,
    )
    return dict(zip(OUTPUT_COLUMNS, values, strict=True))
