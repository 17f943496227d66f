"""The commands that make models. What they need of train and export is imported inside of them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mmrag_batch.bundle import Precision
from mmrag_batch.cli.making import Config, Keys, alone, told_to_download, training_imports
from mmrag_batch.declare import load_config
from mmrag_batch.prompt import Scoring

train = typer.Typer(rich_markup_mode=None, help="Train a model, as a YAML file says.")
export = typer.Typer(rich_markup_mode=None)

Table = Annotated[Path | None, typer.Option(help="A table, in place of the config's `table`.")]
PRECISION = "fp16 is for CUDA, int8 for CPUs with VNNI."
SAMPLE = "A table or a folder of pictures to compare on.  [default: drawn ones]"
VOCABULARY = "ImageBind's list of merges.  [default: the one beside its weights]"
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the settings and what they name, and stop.")
]


@train.command("retriever")
def _train_retriever(config: Config, dry_run: DryRun = False, _keys: Keys = False) -> None:
    """Train the towers on frozen embeddings; started again, it goes on."""
    from mmrag_batch.train.settings import RetrieverConfig

    settings = load_config(config, RetrieverConfig)
    with training_imports():
        from mmrag_batch.train.retriever import plan_retriever, train_retriever

    if dry_run:
        if not told_to_download({"retriever": settings.encoders, "generator": settings.generator}):
            typer.echo(plan_retriever(settings))
        return
    with alone(settings.out):
        typer.echo(train_retriever(settings))


@train.command("generator")
def _train_generator(config: Config, dry_run: DryRun = False, _keys: Keys = False) -> None:
    """Tune a Llama 3.2 Vision on a table of questions; started again, it goes on."""
    from mmrag_batch.train.settings import GeneratorConfig

    settings = load_config(config, GeneratorConfig)
    with training_imports():
        from mmrag_batch.export.merge import read_base
        from mmrag_batch.train.generator import plan_generator, train_generator, with_parts

    if not dry_run:
        with alone(settings.out):
            typer.echo(train_generator(settings))
        return
    if told_to_download({"generator": settings.base, "retriever": settings.retriever}):
        return
    if settings.lora_rank:  # an adapter of what cannot be merged into would be of no use
        read_base(with_parts(settings).base)
    typer.echo(plan_generator(settings))


@train.command("encoders")
def _train_encoders(config: Config, table: Table = None, _keys: Keys = False) -> None:
    """Train small image and text encoders on a table of your own."""
    from mmrag_batch.train.settings import EncodersConfig

    settings = load_config(config, EncodersConfig, {"table": table})
    with training_imports():
        from mmrag_batch.train.encoders import train_encoders

    with alone(settings.out):
        typer.echo(train_encoders(settings))


@train.command("vision")
def _train_vision(config: Config, table: Table = None, _keys: Keys = False) -> None:
    """Make a small Llama 3.2 Vision, or take one, and teach it to see what a table asks about."""
    from mmrag_batch.train.settings import VisionConfig

    settings = load_config(config, VisionConfig, {"table": table})
    with training_imports():
        from mmrag_batch.train.vision import train_vision

    with alone(settings.out):
        typer.echo(train_vision(settings))


@export.callback(invoke_without_command=True)
def _export_bundle(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML file with any of these, as `init` writes one."),
    ] = None,
    _keys: Keys = False,
    encoders: Annotated[
        Path | None,
        typer.Option(
            help="What `export encoders` takes, the graphs that it wrote, a bundle, or demo.  "
            "[default: no retriever, for tables without documents]"
        ),
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(
            "--generator", "--base", help="What answers: the folder of a checkpoint, or a bundle."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The bundle to write.")] = None,
    towers: Annotated[
        Path | None,
        typer.Option(help="Trained towers.  [default: those beside the graphs, or untrained ones]"),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A LoRA adapter to merge into the generator.")
    ] = None,
    scoring: Annotated[
        Scoring | None,
        typer.Option(
            help="How it is asked to choose. This and the next three: by default as it was tuned, "
            "or as the bundle says that it comes from.  [else: letter]"
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Documents kept a question.  [else: 3]")] = None,
    max_images: Annotated[int | None, typer.Option(help="Images a question.  [else: 4]")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt.  [else: 8192, or what the model has]")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="The generator's.  [default: as its model card says]")
    ] = None,
    trained_on: Annotated[str | None, typer.Option(help="For the manifest.")] = None,
    untested: Annotated[
        bool | None, typer.Option("--untested", help="Take an architecture nobody has tested.")
    ] = None,
    notice: Annotated[str | None, typer.Option(help="Shown at the start of every run.")] = None,
    precision: Annotated[Precision | None, typer.Option(help=PRECISION)] = None,
    sample: Annotated[Path | None, typer.Option(help=SAMPLE)] = None,
    vocabulary: Annotated[Path | None, typer.Option(help=VOCABULARY)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the parts, say what would be done, and stop.")
    ] = False,
) -> None:
    """Make a bundle of models, trained here or not, or, with a command, a part of one."""
    if ctx.invoked_subcommand:
        return
    own = ("config", "_keys", "overwrite", "dry_run")
    settings = {name: value for name, value in ctx.params.items() if name not in own}
    if config is None and not any(settings.values()):
        raise typer.BadParameter(
            "parts are needed, as in --encoders DIR --generator DIR --out DIR, or --config FILE"
        )
    from mmrag_batch.export.settings import ExportConfig

    parts = load_config(config, ExportConfig, settings)
    with training_imports():
        from mmrag_batch.export.bundle import plan_bundle, write_bundle
        from mmrag_batch.export.dry_run import show

    if dry_run:
        models = {"generator": parts.generator, "adapter": parts.adapter}
        retriever = {"retriever": parts.encoders, "towers": parts.towers}
        if not told_to_download(retriever | models):
            typer.echo(show(plan_bundle(parts, overwrite=overwrite), parts.out))
        return
    with alone(parts.out):
        _show_figures(write_bundle(parts, overwrite=overwrite).parity)
    typer.echo(f"Next: mmrag-batch predict in.csv out.csv --bundle {shlex.quote(str(parts.out))}")


@export.command("encoders")
def _export_encoders(
    encoders: Annotated[
        Path,
        typer.Option(
            "--encoders",
            "--imagebind",
            "--clip",
            help="imagebind_huge.pth (or .safetensors), the folder of a CLIP or SigLIP 2, or "
            "encoders trained here.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The retriever directory to write.")],
    precision: Annotated[Precision, typer.Option(help=PRECISION)] = "fp32",
    sample: Annotated[Path | None, typer.Option(help=SAMPLE)] = None,
    vocabulary: Annotated[Path | None, typer.Option(help=VOCABULARY)] = None,
) -> None:
    """Write the graphs of the image and the text encoder, and say how exact they are.

    ImageBind's weights may not be used commercially (CC BY-NC-SA 4.0); CLIP and SigLIP 2 have
    licences of their own.
    """
    with training_imports():
        from mmrag_batch.export.onnx_retriever import export_encoders
        from mmrag_batch.hub.fetch import fetch_part

    with alone(out):
        folder = fetch_part(encoders, "retriever")
        figures = export_encoders(
            folder, out, precision=precision, sample=sample, vocabulary=vocabulary
        )
    _show_figures(figures)


@export.command("towers")
def _export_towers(
    towers: Annotated[Path, typer.Option(help="Trained towers.")],
    out: Annotated[Path, typer.Option(help="A retriever directory that has its encoders.")],
) -> None:
    """Write the graphs of the question and the document tower beside the encoders."""
    with training_imports():
        from mmrag_batch.export.onnx_retriever import export_towers
        from mmrag_batch.hub.fetch import fetch_part

    with alone(out):
        _show_parity(export_towers(fetch_part(towers, "towers"), out))


@export.command("generator")
def _export_generator(
    base: Annotated[Path, typer.Option(help="The checkpoint that was tuned, not quantised.")],
    adapter: Annotated[Path, typer.Option(help="A LoRA adapter in PEFT's format.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
    logits: Annotated[
        bool, typer.Option("--logits", help="Compare logits, whatever memory that takes.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint.")] = False,
) -> None:
    """Merge an adapter into its base, shard by shard, and prove that it did."""
    with training_imports():
        from mmrag_batch.export.merge import write_generator
        from mmrag_batch.hub.fetch import fetch_part

    with alone(out):
        folders = fetch_part(base, "generator"), fetch_part(adapter, "adapter")
        done = write_generator(*folders, out, logits=logits, overwrite=overwrite)
    typer.echo(f"{out}: {done.merged} weights merged, {done.kept} tensors as in {base}.")
    typer.echo(f"merged weights: {done.weights:.2f} rounding steps from W + B A scale at most")
    if done.logits is not None:
        _show_parity({"merged_logits": done.logits})


def _show_figures(figures: Mapping[str, float]) -> None:
    for name, figure in figures.items():
        typer.echo(f"{name}: {figure:.7g}")


def _show_parity(parity: Mapping[str, float]) -> None:
    for part, difference in parity.items():
        typer.echo(f"{part}: differs by at most {difference:.1e}")
