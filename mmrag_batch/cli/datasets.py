"""The command that makes a table of a public benchmark."""

from pathlib import Path
from typing import Annotated

import typer

datasets = typer.Typer(rich_markup_mode=None)


@datasets.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="scienceqa, a-okvqa, mmmu, mrag-bench or webqa.")],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The benchmark, as it was unpacked.")
    ],
    table: Annotated[Path, typer.Argument(metavar="OUT", help="The table to write.")],
    split: Annotated[
        str | None, typer.Option(help="Its rows alone: test, val, ...  [default: all rows]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Write the public benchmark NAME, unpacked in DIR, as a table for `predict`.

    Nothing is downloaded. Pictures inside the benchmark's files go to OUT.images/.
    """
    from mmrag_batch.datasets.dataset import import_dataset

    rows, missing = import_dataset(name, directory, table, split=split, overwrite=overwrite)
    typer.echo(f"{table}: {rows:,} rows.")
    if missing:
        typer.echo(
            f"{missing:,} pictures are named and not there: `mmrag-batch validate {table}`.",
            err=True,
        )
