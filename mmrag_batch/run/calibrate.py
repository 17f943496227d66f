"""How sure a bundle's generator really is: a temperature, fitted on the labelled rows of an output
and noted in the bundle, so that every later run shows confidences that mean what they say.

No answer changes, and none is asked again: runs keep answers as they were given.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from mmrag_batch.bundle import MANIFEST, read_manifest, write_manifest
from mmrag_batch.errors import ConfigError, InputError, OutputError
from mmrag_batch.records import Row
from mmrag_batch.report.temperature import COLDEST, HOTTEST, Fit, Scored, fit_temperature, soften
from mmrag_batch.run.files import Paths
from mmrag_batch.run.keys import OWN
from mmrag_batch.run.one import Output, check_as_written, find_output, read_written
from mmrag_batch.run.plan import find_answer_settings, settings_of_run
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.truth import Reading, read_labels

FEWEST = 50
"""Rows below which a temperature says more of them than of the model."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found, for which bundle; why it was not noted, if it was not; and what writes the
    output anew."""

    bundle: Path
    fit: Fit
    refused: str | None
    command: str


def calibrate(
    path: Path,
    given: Mapping[str, object],
    *,
    store: Path | None = None,
    reading: Reading | None = None,
) -> Calibration:
    """Fit a temperature on the rows of a finished output that have choices and a label, measure it
    on rows that were held out, and note it in the bundle, unless it would make those worse.

    Raises ConfigError for an output of another model than the bundle's, MissingError for one that
    is not there, InputError for too few rows, OutputError for a bundle that cannot be written to.
    """
    output = find_output(Paths.of(path, store))
    settings = settings_of_run(output.paths, output.job, output.manifest, given)
    _check(output, settings)
    shown = output.manifest.presentation if output.manifest else {}
    rows = list(_scored(path, settings, reading, shown.get("temperature", 1.0)))
    if len(rows) < FEWEST:
        raise InputError(
            f"{path}: {len(rows)} rows have choices, a label and probabilities; a temperature "
            f"takes {FEWEST}, of questions that differ."
        )
    try:
        fit = fit_temperature(rows)
    except ValueError as error:
        raise InputError(f"{path}: {error}, so none can be held out.") from None
    refused = _refuse(fit)
    if refused is None:
        _note(settings.bundle, fit)
    return Calibration(settings.bundle, fit, refused, output.command())


def _check(output: Output, settings: PredictSettings) -> None:
    """Raise ConfigError unless the answers are those of a bundle's own generator, which is not the
    package's."""
    now = find_answer_settings(settings)
    check_as_written(output, now)
    if now["engine"] != OWN:
        raise ConfigError(
            f"The answers of {output.paths.output} are those of another model ({now['engine']}), "
            "not of a bundle's generator; there is no bundle to note their temperature in."
        )
    if settings.bundle.resolve() == DEMO_BUNDLE.resolve():
        raise ConfigError(
            "The packaged bundle is not changed. Copy it, and run `predict` and `calibrate` with "
            f"the copy: `cp -r {shlex.quote(str(settings.bundle))} my-bundle`, then `--bundle "
            "my-bundle`."
        )


def _scored(
    path: Path, settings: PredictSettings, reading: Reading | None, temperature: float
) -> Iterator[Scored]:
    """The rows that count, their probabilities as they were given."""
    for row in read_labels(path, reading, names=parse_names(settings.columns)).rows():
        if row.question is None or row.question.label is None:
            continue
        probabilities = read_written(path, row).probabilities
        if len(probabilities) == len(row.question.choices):
            given = probabilities if temperature == 1 else soften(probabilities, 1 / temperature)
            yield Scored(given, row.question.label, _group(row))


def _group(row: Row) -> int:
    """The same number for rows with the same question and picture."""
    asked = repr(row.question and (row.question.text, row.question.image))
    return int.from_bytes(blake2b(asked.encode(), digest_size=4).digest())


def _refuse(fit: Fit) -> str | None:
    """Why a temperature is not one to go by."""
    if not COLDEST * 1.01 < fit.temperature < HOTTEST / 1.01:
        return "no temperature fits: the rows are all right, or no better than chance"
    if fit.nll_after >= fit.nll_before:
        return "it makes held-out rows no more likely"
    return None


def _note(bundle: Path, fit: Fit) -> None:
    manifest = replace(read_manifest(bundle), calibration=dict(fit._asdict()))
    try:
        write_manifest(bundle, manifest)
    except OSError as error:
        raise OutputError(
            f"{bundle / MANIFEST} cannot be written ({error.strerror}). Copy the bundle to where "
            "it can be, and run `predict` and `calibrate` with that."
        ) from None
