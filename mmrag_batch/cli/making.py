"""What the commands that make models share."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer

from mmrag_batch.cli.logs import start_logging
from mmrag_batch.errors import OutputError
from mmrag_batch.hub.names import Part
from mmrag_batch.plugs import load

CONFIGS = {
    "train retriever": "mmrag_batch.train.settings:RetrieverConfig",
    "train generator": "mmrag_batch.train.settings:GeneratorConfig",
    "train encoders": "mmrag_batch.train.settings:EncodersConfig",
    "train vision": "mmrag_batch.train.settings:VisionConfig",
    "demo encoders": "mmrag_batch.train.settings:DemoEncodersConfig",
    "demo vision": "mmrag_batch.train.settings:DemoVisionConfig",
    "export": "mmrag_batch.export.settings:ExportConfig",
}
"""Whose keys the file of a command has."""


def config_of(command: str) -> type:
    """The settings of a command that takes a YAML file."""
    kind: type = load(CONFIGS[command])
    return kind


def _list_keys(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from mmrag_batch.configs import as_list

        typer.echo("\n".join(as_list(config_of(ctx.command_path.partition(" ")[2]))))
        raise typer.Exit


Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file; `mmrag-batch init` writes some.")
]
Keys = Annotated[
    bool,
    typer.Option(
        "--keys", is_eager=True, callback=_list_keys, help="List the keys of CONFIG, and stop."
    ),
]


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Around what writes `out`, so that no other command does meanwhile; `.out.lock` beside it says
    who. Raises LockedError, or OutputError where nothing can be written."""
    from mmrag_batch.run.lock import hold_lock

    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun the first one holds it
        yield
        return
    place = out.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place.parent} cannot be made ({error.strerror}).") from None
    with hold_lock(place.with_name(f".{place.name}.lock"), wait=False):
        yield


@contextmanager
def training_imports() -> Iterator[None]:
    """Around imports of train and export: shows what they log, or says what to install."""
    from mmrag_batch.extras import requires

    start_logging()
    # It advises a package that would load code from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with requires("train"):
        yield


def told_to_download(parts: Mapping[str, Path | None]) -> bool:
    """Say what of the parts a plan would have to download first, if anything."""
    from mmrag_batch.hub.fetch import to_download

    named = [(path, cast(Part, part)) for part, path in parts.items() if path is not None]
    told = [line for path, part in named if (line := to_download(path, part))]
    if told:
        told.append("Nothing was downloaded or written; the rest of the plan needs what is there.")
        typer.echo("\n".join(told))
    return bool(told)
