"""What a run was made with, and what of it differs from another's."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from mmrag_batch.bundle import BundleManifest, read_manifest
from mmrag_batch.errors import MmragError
from mmrag_batch.report.cards import LONGEST_TEXT, cut
from mmrag_batch.run.one import Output
from mmrag_batch.run.plan import find_answer_settings, settings_of_run

Known = dict[str, str]
FEW = 6
"""Files that are named."""


def tell_run(output: Output) -> list[tuple[str, str]]:
    """What is known of a run, by name: its settings, its bundle, its table, its versions."""
    known = _settings(output) | _bundle(output)[0] | _versions(output)
    if (manifest := output.manifest) is not None:
        when = datetime.fromtimestamp(manifest.finished, UTC)
        known |= {
            "table": f"{manifest.input.get('rows', 0):,} rows, "
            f"SHA-256 {str(manifest.input.get('sha256'))[:12]}…",
            "finished": f"{when:%Y-%m-%d %H:%M} UTC",
            "seconds of answering": f"{manifest.seconds:,.1f}",
        }
    return [(name, _short(text)) for name, text in known.items()]


def find_differences(here: Output, there: Output) -> list[tuple[str, str, str]]:
    """What differs between two runs: each name, what it is here and there."""
    (ours, our_files), (theirs, their_files) = _bundle(here), _bundle(there)
    ours, theirs = ours | _settings(here), theirs | _settings(there)
    differing = list(_differing(ours, theirs))
    if our_files and their_files:
        names = [
            name
            for name in sorted({*our_files, *their_files})
            if our_files.get(name) != their_files.get(name)
        ]
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        if names:
            other = "other bytes, or none"
            differing.append(("bundle files", ", ".join(names[:FEW]) + more, other))
    differing += _differing(_versions(here), _versions(there))
    tables = [
        {} if one.manifest is None else {"table": str(one.manifest.input.get("sha256"))}
        for one in (here, there)
    ]
    return [*differing, *_differing(*tables)]


def _differing(ours: Known, theirs: Known) -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(name, "not known"), theirs.get(name, "not known")
        if here != there:
            yield name, _short(here), _short(there)


def _short(text: str) -> str:
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else cut(text, LONGEST_TEXT)


def _settings(output: Output) -> Known:
    said = output.manifest or output.job
    settings = {} if said is None else dict(said.settings)
    settings |= output.manifest.presentation if output.manifest else {}
    return {name: "not set" if value is None else str(value) for name, value in settings.items()}


def _bundle(output: Output) -> tuple[Known, Mapping[str, str]]:
    """What a bundle says of itself, and its files by their hashes; nothing where the one that the
    run had is not there any more."""
    said = output.manifest or output.job
    if said is None:
        return {}, {}
    with suppress(MmragError):
        settings = settings_of_run(output.paths, output.job, output.manifest, {})
        if find_answer_settings(settings)["bundle"] == said.settings.get("bundle"):
            manifest = read_manifest(settings.bundle)
            return {"bundle folder": str(settings.bundle)} | _describe(manifest), manifest.files
    return {}, {}


def _describe(manifest: BundleManifest) -> Known:
    values = {"trained on": manifest.trained_on, "made by": manifest.created_by}
    values |= {f"source of {part}": name for part, name in manifest.sources.items()}
    parts = {"retriever": manifest.retriever, "generator": manifest.generator}
    for name, spec in parts.items():
        if spec is not None:
            values |= {f"{name}: {field}": str(value) for field, value in asdict(spec).items()}
    return values


def _versions(output: Output) -> Known:
    """The versions of all processes that gave answers; several where they were not the same."""
    versions: dict[str, dict[str, None]] = {}
    for start in output.manifest.starts if output.manifest else ():
        for name, version in start.get("versions", {}).items():
            versions.setdefault(name, {})[str(version)] = None
    return {name: ", ".join(some) for name, some in versions.items()}
