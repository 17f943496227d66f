"""The commands that make models. What they need of train and export is imported inside of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

export = typer.Typer(rich_markup_mode=None)


@export.callback(invoke_without_command=True)
def _export_bundle(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file that names the parts; see export/configs.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
) -> None:
    """Turn trained models into a bundle, or, with a command, into a part of one."""
    if ctx.invoked_subcommand:
        return
    if config is None:
        raise typer.BadParameter("--config is needed, as in --config export/configs/demo.yaml")
    from mmrag_batch.factory import requires

    with requires("train"):
        from export.bundle import ExportConfig, write_bundle
        from train.config import load_config

    _show_parity(write_bundle(load_config(config, ExportConfig), overwrite=overwrite).parity)


@export.command("encoders")
def _export_encoders(
    encoders: Annotated[Path, typer.Option(help="Trained encoders.")],
    out: Annotated[Path, typer.Option(help="The retriever directory to write.")],
) -> None:
    """Write the graphs of the image and the text encoder."""
    from mmrag_batch.factory import requires

    with requires("train"):
        from export.onnx_retriever import export_encoders

    _show_parity(export_encoders(encoders, out))


@export.command("towers")
def _export_towers(
    towers: Annotated[Path, typer.Option(help="Trained towers.")],
    out: Annotated[Path, typer.Option(help="A retriever directory that has its encoders.")],
) -> None:
    """Write the graphs of the question and the document tower beside the encoders."""
    from mmrag_batch.factory import requires

    with requires("train"):
        from export.onnx_retriever import export_towers

    _show_parity(export_towers(towers, out))


def _show_parity(parity: Mapping[str, float]) -> None:
    for part, difference in parity.items():
        typer.echo(f"{part}: differs by at most {difference:.1e}")
