"""`init`: files with the settings that lead from a table to a bundle, and the commands to type."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mmrag_batch.cli.checks import ColumnNames
from mmrag_batch.cli.making import config_of
from mmrag_batch.errors import MissingError, OutputError

setup = typer.Typer(rich_markup_mode=None)

ROWS, ASKED = 4000, 300
"""Of the worlds that are drawn, to learn from and to be asked."""
STEPS = 200
"""That a small generator is tuned."""
SMALL = Path("demo")
ENCODERS = Path("hf:google/siglip2-base-patch16-224")
LLAMA = Path("hf:meta-llama/Llama-3.2-11B-Vision-Instruct")
GPU, CPU = ("gpu", "train-4bit", "report"), ("cpu", "train", "report")


class Preset(NamedTuple):
    """What suits a machine whose largest GPU has so many GB: configs of the package by their names,
    models, and the extras that they need."""

    memory: int
    says: str
    configs: Mapping[str, str]
    encoders: Path
    base: Path
    extras: Sequence[str]


def _preset(memory: int, generator: str) -> Preset:
    configs = {"retriever": "own_retriever", "generator": generator, "export": "llama_11b"}
    says = (
        f"A GPU of {memory} GB or more: {LLAMA} is tuned, whose terms its page on the hub asks you "
        "to accept."
    )
    return Preset(memory, says, configs, ENCODERS, LLAMA, GPU)


PRESETS = (
    _preset(80, "llama_11b_80gb"),
    _preset(24, "llama_11b_24gb"),
    Preset(
        0,
        "No GPU of 24 GB or more: the small models of the package are tuned, which have seen "
        "coloured shapes and nothing else. Name others in `encoders` and `base`.",
        {"retriever": "demo_retriever", "generator": "demo_generator", "export": "demo"},
        SMALL,
        SMALL,
        CPU,
    ),
)
LEEWAY = 0.9
"""A driver shows less than what a card is sold by, and counts in other gigabytes."""


@setup.command("init")
def _init(
    directory: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to write.", show_default=False)
    ] = Path(),
    table: Annotated[
        Path | None,
        typer.Option(help="A table with labels to learn from.  [default: a drawn one]"),
    ] = None,
    columns: ColumnNames = None,
) -> None:
    """Write the configs from a table to a bundle, every key explained, and say what to type.

    They suit this machine. Asks nothing, and replaces no file.
    """
    from mmrag_batch import machine

    memory = max((gpu.memory for gpu in machine.gpus()), default=0)
    preset = next(one for one in PRESETS if memory >= one.memory * LEEWAY * 1e9)
    if table is not None:
        _check_table(table, columns or "")
        table = Path(os.path.relpath(table.resolve(), directory.resolve()))
    files = _files(preset, table, columns or "")
    _write(directory, files)
    typer.echo(preset.says)
    for name in files:
        typer.echo(directory / name)
    typer.echo("\nType these, in order:")
    for what, commands in _steps(preset, table, columns, directory):
        typer.echo(f"\n{what}:")
        for command in commands:
            typer.echo(f"    {command}")


def _check_table(table: Path, columns: str) -> None:
    """Raise what reading the head of a table does."""
    from mmrag_batch.table.formats import read_header
    from mmrag_batch.table.names import parse_names

    if not table.is_file():
        raise MissingError(f"--table: there is no file {table}.")
    read_header(table, parse_names(columns))


def _files(preset: Preset, table: Path | None, columns: str) -> dict[str, str]:
    """What to write, by name."""
    from mmrag_batch import export, train
    from mmrag_batch.configs import as_toml, as_yaml
    from mmrag_batch.declare import load_config
    from mmrag_batch.settings import PredictSettings

    is_small = preset.base == SMALL
    towers = Path("runs/retriever/model")
    graphs = Path("runs/untuned" if is_small else "runs/graphs")
    data = {"table": table or Path("train/questions.csv"), "columns": columns}
    changes: dict[str, dict[str, Any]] = {
        "retriever": {
            **data,
            "encoders": preset.encoders if is_small else graphs,
            "out": Path("runs/retriever"),
            "supervision": "answer",
        },
        "generator": {
            **data,
            "base": preset.base,
            "retriever": graphs,
            "out": Path("runs/generator"),
        },
        "export": {
            "encoders": preset.encoders if is_small else graphs,
            "towers": towers,
            "generator": preset.base,
            "adapter": Path("runs/generator/adapter"),
            "out": Path("bundle"),
            "trained_on": str(table or "a demo world"),
        },
    }
    if is_small:
        changes["generator"]["steps"] = STEPS
    if table is not None:
        changes["export"]["notice"] = ""
    files = {}
    for part, name in preset.configs.items():
        command = "export" if part == "export" else f"train {part}"
        (package,) = (export if part == "export" else train).__path__
        given: Any = load_config(Path(package, "configs", f"{name}.yaml"), config_of(command))
        flag = "--config " if part == "export" else ""
        head = (f"mmrag-batch {command} {flag}{part}.yaml", *HEAD)
        files[f"{part}.yaml"] = as_yaml(replace(given, **changes[part]), head)
    asked = PredictSettings(Path(), Path(), bundle=Path("bundle"), columns=columns)
    head = ("mmrag-batch predict in.csv out.csv --config predict.toml", *HEAD)
    files["predict.toml"] = as_toml(asked, head, "predict")
    return files


HEAD = (
    "What stands behind a # without a space is a default: take the # away to change it. Paths",
    "begin where the command is typed.",
)


def _write(directory: Path, files: Mapping[str, str]) -> None:
    """Write all files, or none where one exists. Raises OutputError that names those."""
    if there := [str(directory / name) for name in files if os.path.lexists(directory / name)]:
        raise OutputError(
            f"{', '.join(there)}: exists, and nothing was written. Name another folder: "
            "`mmrag-batch init DIR`."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise OutputError(f"{directory} cannot be written into ({error.strerror}).") from None


def _steps(
    preset: Preset, table: Path | None, columns: str | None, directory: Path
) -> Iterator[tuple[str, list[str]]]:
    """What to do, each with the lines to type for it."""
    from mmrag_batch import machine

    def ours(line: str, *words: str) -> str:
        return shlex.join(["mmrag-batch", *line.split(), *words])

    known = machine.extras()
    if machine.unmet_requirements([item for name in preset.extras for item in known[name]]):
        yield "Install what is missing here", [machine.install(*preset.extras)]
    if directory.resolve() != Path.cwd():
        place = str(directory)
        yield "Go there", [shlex.join(["cd", f"./{place}" if place.startswith("-") else place])]
    named = ["--columns", columns] if columns else []
    if table is None:
        worlds = {"train": (ROWS, 1), "test": (ASKED, 9001)}
        drawn = [f"demo world {name} --rows {n} --seed {s}" for name, (n, s) in worlds.items()]
        yield "Draw a world to learn from, and one to be asked about", list(map(ours, drawn))
        asked = "test/questions.csv"
    else:
        yield "See what is wrong with the table", [ours("validate", str(table), *named)]
        asked = str(table)
    retriever = [ours("train retriever retriever.yaml")]
    if preset.base == SMALL:
        bundle = "--encoders demo --towers runs/retriever/model --generator demo"
        after = [ours(f"export {bundle} --out runs/untuned")]
    else:
        graphs = f"export encoders --encoders {preset.encoders} --out runs/graphs"
        retriever = [ours(graphs), *retriever]
        after = [ours("export towers --towers runs/retriever/model --out runs/graphs")]
    yield "Train what finds the evidence", [*retriever, *after]
    yield "Tune what answers", [ours("train generator generator.yaml")]
    yield "Make a bundle of both", [ours("export --config export.yaml")]
    predict = ours("predict", asked, "answers.csv", "--config", "predict.toml")
    what = "Answer, and see how well"
    if table is not None:
        what += "; a table that nothing has learnt from says more"
    yield what, [predict, ours("evaluate answers.csv", *named)]
