"""What a program calls: the same as the command line, with errors raised instead of exit codes.

All of it is imported from the package itself: `from mmrag_batch import predict`.
"""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmrag_batch.bundle import Bundle
from mmrag_batch.bundle import open_bundle as _open_bundle
from mmrag_batch.settings import load_predict_settings

if TYPE_CHECKING:
    import pandas as pd

    from mmrag_batch.report.notebook import Evaluation

__all__ = ["Bundle", "evaluate", "open_bundle", "predict", "read_answers"]

LISTS = ("choice_probabilities", "evidence")
"""Columns of an output that hold JSON."""


def predict(
    input_path: str | PathLike[str],
    output_path: str | PathLike[str],
    *,
    config: str | PathLike[str] | None = None,
    **settings: object,
) -> Path:
    """Answer every row of a table that has no answer yet, and write the output; its path.

    `settings` are those of docs/settings.md by their names in a file (`top_k=3`), `config` is such
    a file; variables of the environment are not read. What is logged goes to the logger
    "mmrag_batch"; Ctrl-C stops the run as it stops the command. Raises the errors of
    `mmrag_batch.errors`: ConfigError for a setting, PartialError where all is written but rows have
    no answer, StoppedError where it was stopped; the same call again goes on from there.
    """
    from mmrag_batch.run.predict import predict as answer

    output = Path(output_path)
    given = {
        name: str(value) if isinstance(value, PathLike) else value
        for name, value in settings.items()
    }
    file = None if config is None else Path(config)
    answer(
        load_predict_settings(
            Path(input_path), output, given, environ={}, config_file=file, called=str
        )
    )
    return output


def evaluate(
    output: str | PathLike[str],
    *,
    by: Sequence[str] = (),
    labels: Literal["text", "index", "letter"] | None = None,
    columns: str = "",
) -> "Evaluation":
    """The figures of an output whose rows have labels, also for each value of the columns `by`; in
    a notebook they show themselves, as the page of `mmrag-batch report` does.

    `labels` is how labels are read, where not as fits the whole column; `columns` what the table
    calls ours, as in `label=answer`. Raises InputError for a table that `predict` did not write,
    ConfigError for a column that is not there.
    """
    from mmrag_batch.report.notebook import evaluate as measure
    from mmrag_batch.table.names import parse_names

    return measure(Path(output), by=by, reading=labels, names=parse_names(columns))


def read_answers(output: str | PathLike[str]) -> "pd.DataFrame":
    """An output as a data frame, of a format that `predict` writes: every column of the input, and
    the answers, of which `choice_probabilities` are lists of floats (None without choices) and
    `evidence` lists of `{"id", "score"}`, best first.

    Raises InputError for a table that `predict` did not write.
    """
    import pandas as pd

    from mmrag_batch.table.formats import read_header, read_records
    from mmrag_batch.table.output import OUTPUT_COLUMNS, check_written

    path = Path(output)
    header = read_header(path)
    check_written(path, header, OUTPUT_COLUMNS)
    frame = pd.DataFrame([dict(record.cells) for record in read_records(path)], columns=header)
    for name in LISTS:
        cells = [
            json.loads(cell) if isinstance(cell, str) and cell else cell for cell in frame[name]
        ]
        frame[name] = pd.Series(
            [cell if isinstance(cell, list) else None for cell in cells], dtype=object
        )
    for name in ("prediction_index", "confidence", "confidence_per_token"):
        frame[name] = pd.to_numeric(frame[name])
    return frame.astype({"prediction_index": "Int64"})


def open_bundle(path: str | PathLike[str]) -> Bundle:
    """A bundle, each file of it checked against its manifest; raises as `bundle.open_bundle`."""
    return _open_bundle(Path(path))
