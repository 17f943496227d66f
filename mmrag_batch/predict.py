"""A run of `predict`, from settings to a published output. Everything that can be checked without
a model is checked first."""

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from time import monotonic

from mmrag_batch.bundle import open_bundle
from mmrag_batch.config import PredictSettings
from mmrag_batch.factory import open_stages
from mmrag_batch.io.output import OutputWriter, check_output, status_of
from mmrag_batch.io.table import read_header, read_rows, scan
from mmrag_batch.pipeline import run
from mmrag_batch.progress import Progress
from mmrag_batch.records import Row

log = logging.getLogger(__name__)


def predict(settings: PredictSettings) -> Counter[str]:
    """Answer every row of the input and write the output; returns its rows by status.

    Raises OutputError, InputError, MissingError, ConfigError, DeniedError and UnavailableError
    before the first row; after that, only for what no row is to blame for.
    """
    started = monotonic()
    check_output(settings.output, settings.input, overwrite=settings.overwrite)
    columns = read_header(settings.input)
    rows = scan(settings.input)
    if settings.limit is not None:
        rows = min(rows, settings.limit)
    writer = OutputWriter(settings.output, columns)
    bundle = open_bundle(settings.bundle)
    if bundle.manifest.notice:
        log.info("%s", bundle.manifest.notice)
    log.info("Loading the models of %s.", settings.bundle)
    statuses: Counter[str] = Counter(ok=0, degraded=0, error=0)
    with (
        open_stages(settings, bundle) as stages,
        writer,
        Progress(rows, quiet=settings.quiet) as progress,
    ):

        def write(row: Row) -> None:
            writer.write(row)
            statuses[status_of(row)] += 1
            progress.update(statuses)

        run(read_rows(settings.input, limit=settings.limit), stages, write)
    log.info("%s", _summary(settings, statuses, monotonic() - started, columns))
    return statuses


def _summary(
    settings: PredictSettings, statuses: Counter[str], seconds: float, columns: Sequence[str]
) -> str:
    counts = ", ".join(f"{rows:,} {status}" for status, rows in statuses.items())
    line = f"{settings.output}: {statuses.total():,} rows in {seconds:.1f} s ({counts})."
    if "label" in columns:
        line += f" Next: mmrag-batch evaluate {shlex.quote(str(settings.output))}"
    return line
