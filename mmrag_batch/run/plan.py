"""What a command has to do: nothing, or which rows to ask; and what it must not go on from."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from mmrag_batch.bundle import read_manifest, sha256
from mmrag_batch.declare import SWITCH, settings_of
from mmrag_batch.errors import ConfigError, InternalError, MmragError, OutputError
from mmrag_batch.masking import mask
from mmrag_batch.plugs import load
from mmrag_batch.records import Question, Status
from mmrag_batch.remote import find_url
from mmrag_batch.retrieval.candidates import find_address, find_source, name_source
from mmrag_batch.run.answers import STATUSES, Kept
from mmrag_batch.run.files import Paths, has_bytes
from mmrag_batch.run.job import NOTE, Job
from mmrag_batch.run.keys import CORPUS, OWN, answer_settings, differences, digest_images
from mmrag_batch.run.lock import Lock, is_held, read_holder
from mmrag_batch.run.manifest import FORMAT, Manifest, check_replaceable, find_published, settle
from mmrag_batch.run.mending import move_aside
from mmrag_batch.run.presentation import find_presentation
from mmrag_batch.run.shards import Shard, find_shards
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import Accepts, Survey
from mmrag_batch.settings import (
    PREFIX,
    PredictSettings,
    flag_of,
    load_predict_settings,
)
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import parse_names

log = logging.getLogger(__name__)
ANEW = (
    "Add `--fresh` to ask every row again (the answers are kept aside), or choose another output."
)

BEGUN_BY = "begun by"
"""The note that names the Slurm job which asked for a new store."""


def options_of(settings: PredictSettings) -> tuple[str, ...]:
    """What a command must be given, but for its files, to go on with a run from anywhere."""
    default = type(settings)(settings.input, settings.output)
    words: list[str] = []
    for name, declared in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if not declared.repeated or value == getattr(default, name):
            continue
        if isinstance(value, bool):
            words.append(flag_of(name, on=value))
        else:
            words += [flag_of(name), _named(value)]
    return tuple(words)


def _named(value: object) -> str:
    """A setting as a text that means the same from any folder."""
    if not isinstance(value, Path):
        return mask(str(value))
    elsewhere = find_url(value) or find_address(value)
    return mask(str(elsewhere)) if elsewhere else str(value.absolute())


def settings_of_run(
    paths: Paths, job: Job | None, manifest: Manifest | None, given: Mapping[str, object]
) -> PredictSettings:
    """The settings of a run as its store knows them or, without that, its manifest; what is `given`
    stands in for them. Raises ConfigError for what cannot be a setting."""
    table = paths.output if job is None else job.table
    answers = (manifest.settings if manifest else {}) if job is None else job.settings
    names = (manifest.input.get("names", {}) if manifest else {}) if job is None else job.names
    declared = settings_of(PredictSettings)
    known = {
        name: str(value)
        for name, value in answers.items()
        if name in declared and declared[name].changes_answers and value not in (None, OWN)
    }
    if names:
        known["columns"] = ",".join(f"{ours}={theirs}" for ours, theirs in names.items())
    if job is not None:
        known |= read_options(job.options)
    variables = {PREFIX + name.upper(): text for name, text in known.items()}
    environ = variables if job or manifest else os.environ
    return load_predict_settings(table, paths.output, given, environ=environ)


def read_options(options: Sequence[str]) -> dict[str, str]:
    """The settings that `options_of` has written, each as a text."""
    declared = settings_of(PredictSettings)
    values: dict[str, str] = {}
    words = iter(options)
    for word in words:
        name = word.removeprefix("--no-").removeprefix("--").replace("-", "_")
        if name in declared and declared[name].rule is SWITCH:
            values[name] = "false" if word.startswith("--no-") else "true"
        else:
            values[name] = next(words, "")
    return {name: text for name, text in values.items() if name in declared}


def make_job(settings: PredictSettings, asked: PredictSettings) -> Job:
    """What a run's answers are answers to; `asked` are its settings with the names of what was
    copied here. Raises MissingError if there is no such bundle."""
    options = options_of(replace(settings, bundle=asked.bundle))
    answers, names = find_answer_settings(settings), parse_names(settings.columns)
    shown = find_presentation(settings.bundle, answers, settings.abstain_below)
    source = mask(find_url(asked.input) or "")
    return Job(settings.input, settings.limit, answers, options, names, shown, source)


def find_answer_settings(settings: PredictSettings) -> dict[str, object]:
    """What every answer of a run depends on. Raises ConfigError for a name that nothing has."""
    declared = settings_of(type(settings)).items()
    asked = {name: getattr(settings, name) for name, one in declared if one.changes_answers}
    values = answer_settings(read_manifest(settings.bundle), asked)
    values["candidates"] = name_source(settings)
    source = find_source(name_source(settings))
    if key := source.key(settings):
        values["documents"] = key
    if version := load(source.version)(settings):
        values[CORPUS] = version
    return values


def check_documents(settings: PredictSettings, survey: Survey) -> None:
    """Raise ConfigError where rows have documents and the bundle has no retriever for them."""
    manifest = read_manifest(settings.bundle)
    top_k = manifest.generator.top_k if settings.top_k is None else settings.top_k
    is_needed = name_source(settings) == "row" and top_k > 0 and survey.with_documents > 0
    if is_needed and manifest.retriever is None:
        bundle = shlex.quote(str(settings.bundle))
        raise ConfigError(
            f"{settings.input}, line {survey.with_documents} has documents, and {settings.bundle} "
            "has no retriever to choose among them. Give it one: `mmrag-batch export --encoders "
            f"DIR --generator {bundle} --out NEW`; or add `--top-k 0` to answer without documents."
        )


def statuses_to_ask(settings: PredictSettings) -> frozenset[Status]:
    """The statuses of answers that are to be asked again."""
    wanted: dict[Status, bool] = {
        "error": settings.retry_errors or settings.retry_degraded,
        "degraded": settings.retry_degraded,
    }
    return frozenset(status for status, is_wanted in wanted.items() if is_wanted)


def find_acceptable(settings: PredictSettings, images: ImageStore) -> Accepts:
    """A function that says whether an answer will do: not if it is to be asked again, or with
    `verify_inputs` if an image that it rests on is not what it was."""
    again = statuses_to_ask(settings)

    def accepts(question: Question, kept: Kept) -> bool:
        if STATUSES[kept.status] in again:
            return False
        return not settings.verify_inputs or kept.images == digest_images(question, images)

    return accepts


def is_done(settings: PredictSettings, job: Job, manifest: Manifest, store: AnswerStore) -> bool:
    """Whether an output is what this run would write."""
    if settings.fresh or settings.verify_inputs:
        return False
    if manifest.format < FORMAT and not store.is_empty():  # an older version wrote it
        return False
    again = statuses_to_ask(settings)
    withheld = manifest.rows.get("abstained", 0) if "degraded" in again else 0  # it may be degraded
    if withheld or any(manifest.rows[status] for status in again):
        return False
    if manifest.presentation != asdict(job.presentation):
        return False
    names = manifest.input.get("names", {})
    same = (manifest.settings, manifest.limit, names) == (job.settings, job.limit, job.names)
    unchanged = store.is_empty() or store.revision == manifest.revision
    return same and unchanged and manifest.input["sha256"] == sha256(settings.input)


def check_same(
    output: Path, store: AnswerStore, manifest: Manifest | None, now: Mapping[str, object]
) -> None:
    """Raise ConfigError if the answers that are there do not depend on the same, or are gone.

    A store without answers protects nothing.
    """
    if not store.is_empty():
        before = (store.read_note(NOTE) or {}).get("settings", now)
    elif manifest is not None and manifest.asked + manifest.kept:
        before = manifest.settings
    else:
        return
    if changes := differences(before, now, may_change=(CORPUS,)):
        raise ConfigError(f"{output} was begun with something else: {'; '.join(changes)}. {ANEW}")
    if store.is_empty():
        raise ConfigError(
            f"The answers of {output} are gone ({store.path} has none), so every row of a changed "
            f"table would be asked again. {ANEW}"
        )


def check_beside(output: Path, now: Mapping[str, object]) -> None:
    """Raise ConfigError if a shard would give answers that do not go with those of its output."""
    whole = Paths.of(output).store
    if has_bytes(whole):
        # One that is damaged, or holds nothing yet, has no say.
        with suppress(InternalError, OutputError), AnswerStore(whole) as store:
            check_same(output, store, None, now)


def begin_anew(settings: PredictSettings, paths: Paths, shard: Shard | None, lock: Lock) -> None:
    """Move the answers of an output aside, its shards' as well; a shard leaves those of its array,
    whose other tasks begin anew themselves. Raises what `check_replaceable` does, before that."""
    output = settings.output
    whole = Paths.of(output, settings.store)
    if os.path.lexists(whole.store) and (shard is None or not is_held(whole.lock)):
        # It knows what it has published; that it cannot be used does not matter any more.
        with suppress(ConfigError, InternalError), AnswerStore(whole.store, lock.check) as old:
            settle(old)
            if shard is None:
                find_published(whole, old, overwrite=settings.overwrite)
    if shard is None:
        check_replaceable(paths, overwrite=settings.overwrite)
    shards = find_shards(output)
    others = [its for other, its in shards if shard is None or other.count != shard.count]
    others += [Paths.of(output)] if shard is not None else []
    for store in (paths.store, *(its.store for its in others if not is_held(its.lock))):
        if (aside := move_aside(store)) is not None:
            log.info("The answers in %s are in %s now.", store, aside)


def was_begun_anew(paths: Paths) -> bool:
    """Whether a Slurm job that was queued again has begun anew when it was started before."""
    if not int(os.environ.get("SLURM_RESTART_COUNT") or 0) or not has_bytes(paths.store):
        return False
    with suppress(MmragError), AnswerStore(paths.store) as store:
        return bool(store.read_note(BEGUN_BY) == os.environ.get("SLURM_JOB_ID"))
    return False


def find_others(output: Path, own: Paths, table_sha256: str) -> tuple[list[Path], list[range]]:
    """The stores beside a run's own, and the rows of this table that other runs are at."""
    stores: list[Path] = []
    busy: list[range] = []
    for paths in (Paths.of(output), *(paths for _, paths in find_shards(output))):
        if paths.store == own.store or paths.lock == own.lock:
            continue
        if is_held(paths.lock):
            says = read_holder(paths.lock)
            if says.get("table") == table_sha256:
                busy.append(range(*says["rows"]))
        if has_bytes(paths.store):
            stores.append(paths.store)
    return stores, busy
