"""What the answers of a run are answers to: for the run itself, and for who comes later and has the
name of its output and nothing else."""

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmrag_batch.errors import ConfigError, MissingError, MmragError
from mmrag_batch.run.files import Paths
from mmrag_batch.run.keys import AnswerSettings, differences, key_maker
from mmrag_batch.run.presentation import AS_GIVEN, Presentation
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import Survey, take_survey
from mmrag_batch.table.names import Names

NOTE = "job"


@dataclass(frozen=True, slots=True)
class Job:
    """Which rows are answered, and how; and how that is shown. `options` are those that `predict`
    needs to go on, `names` what the table calls our columns; `source` is the URL that the table is
    a copy of, if it is."""

    table: Path
    limit: int | None
    settings: AnswerSettings
    options: tuple[str, ...] = ()
    names: Names = field(default_factory=dict)
    presentation: Presentation = AS_GIVEN
    source: str = ""

    def command(self, output: Path, *more: str) -> str:
        """What to type to go on."""
        table = self.source or str(self.table)
        return shlex.join(["mmrag-batch", "predict", table, str(output), *self.options, *more])


def note_job(store: AnswerStore, job: Job, output: Path, tasks: tuple[int, int] | None) -> None:
    """Keep in a store what its answers are answers to; `tasks` are the first number of an array's
    tasks and the step between them."""
    table = os.path.relpath(job.table.parent.resolve() / job.table.name, output.parent.resolve())
    note = {
        "table": table,
        "limit": job.limit,
        "settings": dict(job.settings),
        "options": list(job.options),
        "names": dict(job.names),
        "presentation": asdict(job.presentation),
        "tasks": None if tasks is None else list(tasks),
    }
    if job.source:
        note["source"] = job.source
    if store.read_note(NOTE) != note:
        store.note(NOTE, note)


def find_job(output: Path, stores: Iterable[Path], table: Path | None = None) -> Job:
    """What the answers in `stores` are answers to. Raises MissingError if there are none,
    ConfigError if they are not of one table, unless it is given, or not of one kind."""
    known = {path: note for path in stores if (note := _read_note(path)) is not None}
    if not known:
        raise MissingError(
            f"Nothing is answered yet for {output}. Run `mmrag-batch predict INPUT {output}`."
        )
    own = Paths.of(output).store
    first, *others = known
    for other in others:
        if changes := differences(known[first]["settings"], known[other]["settings"]):
            raise ConfigError(
                f"{other} was answered with something else than {first}: {'; '.join(changes)}. "
                "Move away the one that is not wanted, then merge again."
            )
    shown = {path: note["presentation"] for path, note in known.items() if path != own}
    for path, its in shown.items():
        if changes := differences(next(iter(shown.values())), its):
            raise ConfigError(
                f"Answers in {path} are to be shown otherwise than those in {next(iter(shown))}: "
                f"{'; '.join(changes)}. Run those shards again with the same settings, which asks "
                "no row again, then merge again."
            )
    folder = output.parent.resolve()  # `..` leads elsewhere from a folder that is a link
    tables = {Path(os.path.relpath(folder / note["table"])) for note in known.values()}
    if table is None and len(tables) > 1:
        names = ", ".join(sorted(map(str, tables)))
        raise ConfigError(f"{output} has answers to {names}: say which, with `--input FILE`.")
    limits = {note["limit"] for note in known.values()}
    limit = None if None in limits else max(limits)
    note = known[first]
    options, names = tuple(note["options"]), note.get("names", {})
    presentation = Presentation(**note["presentation"])
    source = "" if table else note.get("source", "")
    table = table or tables.pop()
    return Job(table, limit, note["settings"], options, names, presentation, source)


def _read_note(store: Path) -> Any:
    with suppress(MmragError), AnswerStore(store) as opened:  # `adopt` tells what is wrong with it
        return None if opened.is_empty() else opened.read_note(NOTE)
    return None


def survey_all(job: Job, store: AnswerStore) -> Survey:
    """What a store has of a job, whatever the answers."""
    key_of = key_maker(job.settings)
    return take_survey(job.table, store, key_of, lambda *_: True, names=job.names, limit=job.limit)
