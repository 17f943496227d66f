"""The commands that make the parts of the demo bundle; docs/demo-bundle.md has them in order."""

from pathlib import Path
from typing import Annotated

import typer

from mmrag_batch.cli.making import Config, Keys, alone, training_imports
from mmrag_batch.declare import load_config

demo = typer.Typer(rich_markup_mode=None, help="Make a part of the demo bundle.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")]


@demo.command("world")
def _world(
    directory: Folder,
    rows: Annotated[int, typer.Option(min=1, help="How many questions.")] = 300,
    seed: Annotated[int, typer.Option(help="Which world.")] = 1,
    free_form: Annotated[
        bool, typer.Option("--free-form", help="Leave out the answers to choose from.")
    ] = False,
) -> None:
    """Draw a world of coloured shapes: DIR/questions.csv and its images."""
    with training_imports():
        from mmrag_batch.train.demo_world import write_world

    with alone(directory):
        typer.echo(write_world(directory, rows=rows, seed=seed, free_form=free_form))


@demo.command("encoders")
def _encoders(config: Config, _keys: Keys = False) -> None:
    """Train small image and text encoders of ImageBind's architecture."""
    from mmrag_batch.train.settings import DemoEncodersConfig

    settings = load_config(config, DemoEncodersConfig)
    with training_imports():
        from mmrag_batch.train.demo_encoders import train_encoders

    with alone(settings.out):
        typer.echo(train_encoders(settings))


@demo.command("generator")
def _generator(
    directory: Folder,
    table: Annotated[Path, typer.Option(help="A table of questions, for its tokenizer.")],
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Write a small, untrained Llama 3.2 Vision."""
    with training_imports():
        from mmrag_batch.train.mllama import build_generator, prompt_texts

    with alone(directory):
        build_generator(directory, prompt_texts(table), seed=seed)
    typer.echo(directory)


@demo.command("vision")
def _vision(config: Config, _keys: Keys = False) -> None:
    """Teach the vision tower of that generator to name what it sees."""
    from mmrag_batch.train.settings import DemoVisionConfig

    settings = load_config(config, DemoVisionConfig)
    with training_imports():
        from mmrag_batch.train.demo_vision import train_vision

    with alone(settings.out):
        typer.echo(train_vision(settings))
