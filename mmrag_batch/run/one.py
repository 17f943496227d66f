"""One row of an output, finished or not: where it stands, and its answer."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mmrag_batch.bundle import sha256
from mmrag_batch.errors import ConfigError, InputError, MissingError, MmragError, RowError
from mmrag_batch.records import Row
from mmrag_batch.report.explanation import Answered
from mmrag_batch.report.free_form import is_exact
from mmrag_batch.run.answers import Kept, to_answer
from mmrag_batch.run.files import Paths
from mmrag_batch.run.job import Job, find_job
from mmrag_batch.run.keys import AnswerSettings, differences, key_maker
from mmrag_batch.run.manifest import Manifest, find_manifest
from mmrag_batch.run.presentation import present
from mmrag_batch.run.progress import told
from mmrag_batch.run.shards import find_shards
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.table.names import Names
from mmrag_batch.table.output import OUTPUT_COLUMNS, answer_cells, check_written
from mmrag_batch.table.record import Record
from mmrag_batch.table.rows import parse_row, read_header, read_records
from mmrag_batch.table.truth import Reading, is_labelled, read_answers, read_labels
from mmrag_batch.table.values import is_empty, parse_list

FEW = 3
"""Ids that a message shows."""


class Output(NamedTuple):
    """What is known of an output: what its answers are answers to, its manifest where it is
    finished, and every store that may have some of them."""

    paths: Paths
    job: Job | None
    manifest: Manifest | None
    stores: tuple[Path, ...]

    @property
    def is_there(self) -> bool:
        return self.paths.output.exists()

    @property
    def has_shards(self) -> bool:
        return len(self.stores) > 1

    def command(self, *more: str) -> str:
        """What to type to go on with its run."""
        store = self.paths.store
        shared = [] if store == Paths.of(self.paths.output).store else ["--store", str(store)]
        job = self.job or Job(Path("INPUT"), None, {})
        return job.command(self.paths.output, *shared, *more)


def find_output(paths: Paths) -> Output:
    """What there is of an output. Raises MissingError where there is nothing, ConfigError for
    shards that do not go together."""
    stores = (paths.store, *(its.store for _, its in find_shards(paths.output)))
    if not paths.output.exists():
        return Output(paths, find_job(paths.output, stores), None, stores)
    job = None
    with suppress(MissingError):
        job = find_job(paths.output, [paths.store])
    return Output(paths, job, find_manifest(paths), stores)


def was_changed(output: Output) -> bool:
    """Whether a finished output is not what its manifest says."""
    return output.manifest is not None and output.manifest.sha256 != sha256(output.paths.output)


def check_as_written(output: Output, now: AnswerSettings) -> None:
    """Raise MissingError for an output that is not there yet, ConfigError for one that is not as
    its run wrote it, or whose answers depend on something else than they would `now`."""
    path = output.paths.output
    if not output.is_there:
        raise MissingError(f"{path} is not there yet. Finish it with `{output.command()}`.")
    if output.manifest is None:
        raise ConfigError(
            f"No manifest says what {path} is. Write it anew: `{output.command('--overwrite')}`."
        )
    if was_changed(output):
        raise ConfigError(
            f"{path} was changed since it was written. Write it anew from its answers: "
            f"`{output.command('--overwrite')}`."
        )
    if changes := differences(output.manifest.settings, now):
        raise ConfigError(
            f"{path} was made with something else: {'; '.join(changes)}. Name its bundle with "
            "`--bundle DIR`, or run `predict` again."
        )


def find_row(table: Path, wanted: str, names: Names, reading: Reading | None) -> Row:
    """The row with that id or, where none has it, that number, told what is true. Raises
    MissingError where there is none, and what `read_header` raises."""
    read_header(table, names)
    by_id: list[tuple[int, Record]] = []
    by_number: list[tuple[int, Record]] = []
    ids: list[str] = []
    rows = 0

    def records() -> Iterator[Record]:
        nonlocal rows
        read = told(read_records(table, names), f"rows of {table} are read")
        for number, record in enumerate(read):
            cell, rows = record.cells.get("id"), number + 1
            if not is_empty(cell):
                ids.append(str(cell)) if len(ids) < FEW else None
                by_id.extend([(number, record)] if str(cell) == wanted else [])
            by_number.extend([(number, record)] if str(number) == wanted else [])
            yield record

    labels = read_labels(table, reading, names=names, records=records())
    for number, record in [*by_id, *by_number]:
        return labels.tell(parse_row(number, record, names))
    there = f"its rows are 0 to {rows - 1:,}" if rows else "it has no rows"
    there += f", with ids such as {', '.join(map(repr, ids))}" if ids else ""
    raise MissingError(f"{table} has no row {wanted}: {there}.")


def find_kept(output: Output, row: Row) -> Kept | None:
    """The answer to a row that a store has; None where none has it, or none can be read."""
    if output.job is None or row.question is None:
        return None
    key = key_maker(output.job.settings)(row.question)
    for path in output.stores:
        with suppress(MmragError), AnswerStore(path) as store:
            if (kept := store.find(key)) is not None:
                return kept
    return None


def read_answer(output: Output, row: Row, kept: Kept | None) -> Answered | None:
    """The answer of the output to a row or, before it is there, that of a store; None where there
    is none. Raises InputError for a table that `predict` did not write."""
    if output.is_there:
        return read_written(output.paths.output, row)
    if kept is None or output.job is None:
        return None
    shown = present(to_answer(kept), output.job.presentation)
    return _read_cells(answer_cells(row.line, shown), row)


def read_written(path: Path, row: Row) -> Answered:
    """The answer that an output has to one of its rows. Raises InputError for a table that
    `predict` did not write."""
    check_written(path, row.cells, OUTPUT_COLUMNS)
    try:
        return _read_cells({name: row.cells.get(name) for name in OUTPUT_COLUMNS}, row)
    except (ValueError, TypeError, KeyError, RowError):
        raise InputError(
            f"{path}, line {row.line}: its answer is not what `predict` writes; give the file as "
            "it wrote it."
        ) from None


def _read_cells(cells: dict[str, object], row: Row) -> Answered:
    status, prediction = str(cells["status"]), cells["prediction"]
    index = _number(cells["prediction_index"])
    text = None if status in ("error", "abstained") else str(prediction or "")
    return Answered(
        status=status,
        prediction=text,
        index=None if index is None else int(index),
        confidence=_number(cells["confidence"]),
        confidence_per_token=_number(cells["confidence_per_token"]),
        probabilities=tuple(map(float, map(str, _items(cells["choice_probabilities"])))),
        evidence=tuple(
            (str(item["id"]), float(item["score"]))
            for item in _items(cells["evidence"])
            if isinstance(item, dict)
        ),
        error=None if is_empty(cells["error"]) else str(cells["error"]),
        right=None if status == "abstained" else _is_right(text, index, row),
    )


def _is_right(text: str | None, index: float | None, row: Row) -> bool | None:
    """What `evaluate` counts: None without a label that can be read; no answer is wrong."""
    question, cell = row.question, row.cells.get("label")
    if question is None:
        return None if is_empty(cell) else False
    if question.choices:
        is_known = is_labelled(cell, question.choices) and question.label is not None
        return index == question.label if is_known else None
    references = question.answers or read_answers(row.cells.get("answers"))
    return is_exact(text or "", references) if references else None


def _items(cell: object) -> Sequence[object]:
    values = list(cell) if isinstance(cell, tuple) else cell
    return parse_list("bad_row", "answer", "a list", values) or []


def _number(cell: object) -> float | None:
    return None if is_empty(cell) else float(str(cell))
