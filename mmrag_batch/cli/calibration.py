"""The command that makes confidences mean what they say."""

import typer

from mmrag_batch.cli.checks import BundleOfRun, ColumnNames, LabelReading, Store, Written
from mmrag_batch.cli.facts import Json, print_json
from mmrag_batch.masking import mask

calibration = typer.Typer(rich_markup_mode=None)


@calibration.command()
def calibrate(
    output: Written,
    bundle: BundleOfRun = None,
    labels: LabelReading = None,
    columns: ColumnNames = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Fit a temperature on the labelled rows of OUTPUT, and note it in the bundle.

    Later runs show confidences by it; no prediction changes, and no row is asked again. What it
    does is measured on rows that it was not fitted on.
    """
    from mmrag_batch.extras import requires

    with requires("report"):
        from mmrag_batch.report.temperature import as_text
        from mmrag_batch.run.calibrate import calibrate as fit

    found = fit(output, {"bundle": bundle, "columns": columns}, store=store, reading=labels)
    if json_:
        said = {"bundle": str(found.bundle), "refused": found.refused, "next": found.command}
        print_json({**found.fit._asdict(), **said})
        return
    typer.echo(as_text(found.fit))
    if found.refused is None:
        typer.echo(f"{found.bundle}: noted. Next, which asks no row: {mask(found.command)}")
    else:
        typer.echo(f"{found.bundle}: left as it is; {found.refused}.")
