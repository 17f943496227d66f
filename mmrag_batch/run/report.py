"""A page of a run: its figures, and rows to browse."""

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmrag_batch.errors import MissingError, OutputError
from mmrag_batch.factory import open_images
from mmrag_batch.progress import Progress
from mmrag_batch.report.cards import LONGEST_TEXT, Card, Other, cut, find_outcome, make_card
from mmrag_batch.report.compare import Comparison, compare
from mmrag_batch.report.facts import LONGEST_VALUE, Facts, read_facts
from mmrag_batch.report.page import is_ours, render
from mmrag_batch.report.sample import Chosen, choose, describe
from mmrag_batch.report.summary import summarize
from mmrag_batch.report.thumbnails import Thumbnails
from mmrag_batch.run import files
from mmrag_batch.run.ablate import read_ablations
from mmrag_batch.run.differences import find_differences, tell_run
from mmrag_batch.run.explain import tell_output
from mmrag_batch.run.files import Paths
from mmrag_batch.run.merge import gather
from mmrag_batch.run.one import Output, find_output, read_written
from mmrag_batch.run.plan import settings_of_run
from mmrag_batch.table.names import Names, parse_names
from mmrag_batch.table.rows import read_rows
from mmrag_batch.table.truth import Reading
from mmrag_batch.table.values import is_empty


@dataclass(frozen=True, slots=True)
class Asked:
    """What a page is to show: an output, how its labels are read, the columns that make groups
    (None: those with few values), how many rows at most, and another run beside it."""

    output: Path
    store: Path | None = None
    reading: Reading | None = None
    by: Sequence[str] | None = None
    rows: int = 300
    other: Path | None = None


def write_report(
    asked: Asked, target: Path, given: Mapping[str, object], *, overwrite: bool = False
) -> int:
    """Write the page of an output; how many bytes it has. `given` are settings in place of the
    run's.

    Raises MissingError where there is no run, InputError for a table that `predict` did not write,
    OutputError for a target that is something else, unless it is to be replaced.
    """
    check_target(target, overwrite=overwrite)
    beside = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    with files.storing(target), beside as folder:
        data = make_report(asked, given, Path(folder))
        check_target(target, overwrite=overwrite)
        files.write_whole(target, data, by_way_of=Path(folder, "page.html"))
    return len(data)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless a page can be written there: in place of nothing, or of a page that
    is as it was written, or of any file where that is to be replaced."""
    if not target.parent.is_dir():
        folder = shlex.quote(str(target.parent))
        raise OutputError(f"{target.parent} is no folder. Run `mkdir -p {folder}`.")
    if files.check_ours(target) and not overwrite and not is_ours(target.read_bytes()):
        raise OutputError(
            f"{target} is there, and is no page of ours, or was changed since. Choose another "
            "file with `--out`, or add `--overwrite`."
        )


def make_report(asked: Asked, given: Mapping[str, object], folder: Path) -> bytes:
    """The page of an output; where that is not finished, of the rows that are answered so far,
    which are written to `folder`."""
    output = find_output(Paths.of(asked.output, asked.store))
    settings = settings_of_run(output.paths, output.job, output.manifest, given)
    # A picture from elsewhere is fetched for who asks for it now, not because a run was allowed to.
    hosts, places = (str(given.get(f"allow_{of}") or "") for of in ("media_domain", "remote"))
    images = open_images(replace(settings, allow_media_domain=hosts, allow_remote=places))
    names = parse_names(settings.columns)
    notes = list(tell_output(output, settings))
    table = output.paths.output
    numbers: Sequence[int] | None = None
    if output.job is not None and not output.is_there:
        table = folder / output.paths.output.name
        _, numbers = gather(output.job, output.stores, table, table.name)
        notes.append(f"{len(numbers):,} rows are answered so far; the others are not here.")
    facts = read_facts(table, by=asked.by, reading=asked.reading, names=names)
    ablations = read_ablations(output, facts) if output.is_there else None
    if ablations == []:
        notes.append(
            "Ablations are not shown: they were made of an output that has changed since. Run "
            "`evaluate --ablate` again, which asks what is new."
        )
    other = None if asked.other is None else _find_other(asked, given)
    comparison = None
    if other is not None:
        differences = find_differences(output, other.output)
        name = str(other.output.paths.output)
        if other.output.manifest is None:
            notes.append(f"No manifest says what {name} is, nor what differs between the runs.")
        comparison = compare(name, facts.frame, other.facts.frame, differences)
    flipped = [*comparison.became_wrong, *comparison.became_right] if comparison else []
    chosen = choose(facts.frame, asked.rows, flipped)
    explain = _explain_command(asked, given)
    cards = _read_cards(
        table,
        facts,
        names,
        chosen,
        range(len(facts.frame)) if numbers is None else numbers,
        explain,
        Thumbnails(images),
        _read_others(other, comparison, chosen) if other and comparison else {},
    )
    overview = summarize(
        facts,
        title=f"Report on {asked.output.name}",
        notes=notes,
        numbers=numbers,
        run=tell_run(output),
        command=output.command(),
        explain=shlex.join(explain),
        comparison=comparison,
        ablations=ablations or [],
    )
    shown = [cards[one.number] for one in chosen]
    return render(overview, shown, lambda room: describe(chosen, len(facts.frame), room))


@dataclass(frozen=True, slots=True)
class _Other:
    """Another output: what is known of it, of its rows, and what it calls our columns."""

    output: Output
    facts: Facts
    names: Names


def _find_other(asked: Asked, given: Mapping[str, object]) -> _Other:
    assert asked.other is not None
    output = find_output(Paths.of(asked.other))
    if not output.is_there:
        raise MissingError(
            f"{asked.other} is not there yet, so there is nothing to compare with. Finish it with "
            f"`{output.command()}`."
        )
    columns = {"columns": given.get("columns")}
    settings = settings_of_run(output.paths, output.job, output.manifest, columns)
    names = parse_names(settings.columns)
    return _Other(output, read_facts(asked.other, reading=asked.reading, names=names), names)


def _read_others(
    other: _Other, comparison: Comparison, chosen: Sequence[Chosen]
) -> dict[int, Other]:
    """What another run answered to chosen rows, by their numbers here."""
    pairs = comparison.pairs.other
    numbers = {pairs[one.number]: one.number for one in chosen if one.number in pairs}
    became = dict.fromkeys(comparison.became_right, "became right")
    became |= dict.fromkeys(comparison.became_wrong, "became wrong")
    path, right = other.output.paths.output, other.facts.frame["right"]
    others = {}
    for row in read_rows(path, sorted(numbers), names=other.names):
        answer, here = read_written(path, row), numbers[row.number]
        said = None if answer.prediction is None else cut(answer.prediction, LONGEST_TEXT)
        outcome = find_outcome(right[row.number], answer.status)
        others[here] = Other(said, answer.confidence, outcome, became.get(here, ""))
    return others


def _read_cards(
    table: Path,
    facts: Facts,
    names: Names,
    chosen: Sequence[Chosen],
    numbers: Sequence[int],
    explain: Sequence[str],
    thumbnails: Thumbnails,
    others: Mapping[int, Other],
) -> dict[int, Card]:
    """The cards of chosen rows by their place in `table`; `numbers` are those in the run's."""
    reasons = {one.number: one.reason for one in chosen}
    cards = {}
    with Progress(f"Rows of {table.name}", len(reasons), "rows") as progress:
        for row in progress.each(read_rows(table, sorted(reasons), names=names)):
            at, number = row.number, numbers[row.number]
            name = str(number) if is_empty(row.cells.get("id")) else row.id
            row.id = name
            cards[at] = make_card(
                facts.labels.tell(row),
                read_written(table, row),
                reasons[at],
                facts.frame["right"][at],
                number=number,
                groups={
                    column: cut(values[at], LONGEST_VALUE)
                    for column, values in facts.columns.items()
                    if column != "status"
                },
                command=shlex.join([*explain, *(["--"] if name[0] == "-" else []), name]),
                thumbnails=thumbnails,
                other=others.get(at),
            )
    return cards


def _explain_command(asked: Asked, given: Mapping[str, object]) -> list[str]:
    """What explains a row, but for its name."""
    options = {"store": asked.store, "labels": asked.reading, **given}
    words = ["mmrag-batch", "explain"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, os.fspath(asked.output)]
