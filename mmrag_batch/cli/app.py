"""The command line: parse, call, map errors to exit codes.

`_Commands.invoke` is the one place where errors are caught. What a command needs is imported
inside of it, so that `--help` loads nothing heavy.
"""

import errno
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mmrag_batch import __version__
from mmrag_batch.cli.calibration import calibration
from mmrag_batch.cli.checks import Table, checks
from mmrag_batch.cli.corpus import corpus
from mmrag_batch.cli.datasets import datasets
from mmrag_batch.cli.demo import demo
from mmrag_batch.cli.facts import Json, print_json
from mmrag_batch.cli.help import SETTINGS, Group, Grouped
from mmrag_batch.cli.init import setup
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.cli.models import export, train
from mmrag_batch.errors import ExitCode, MmragError
from mmrag_batch.masking import mask
from mmrag_batch.settings import PredictSettings, flags, load_predict_settings

if TYPE_CHECKING:
    from mmrag_batch.run.summary import Summary

log = logging.getLogger(__name__)
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})


class _Commands(Group):
    """Commands whose expected failures end with a message and an exit code of their own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MmragError as error:
            _leave(str(error), error.exit_code)
        except KeyboardInterrupt:
            _leave("Interrupted.", ExitCode.INTERRUPTED)
        except BrokenPipeError:
            # Who read our output has left; Python must not fail again when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.ERROR) from None
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            _leave(f"{error}. No output was published: make room, then run again.", ExitCode.IOERR)


def _leave(message: str, code: ExitCode) -> NoReturn:
    typer.echo(f"mmrag-batch: {mask(message)}", err=True)
    raise typer.Exit(code) from None


app = typer.Typer(
    cls=_Commands,
    help="A batch job that answers visual questions with retrieved evidence.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of all commands
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(setup)
app.add_typer(checks)
app.add_typer(calibration)
app.add_typer(datasets)
app.add_typer(corpus)
app.add_typer(train, name="train", cls=Group)
app.add_typer(export, name="export", cls=Group)
app.add_typer(demo, name="demo", cls=Group)


def main() -> None:
    """The console script."""
    try:
        app(prog_name="mmrag-batch")
    finally:
        gc.freeze()  # the interpreter would look through all of it as it ends, for over a second


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmrag-batch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """A batch job that answers visual questions with retrieved evidence."""


def _take_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command a flag for each setting, in place of its `**given`."""
    signature = inspect.signature(command)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    settings, title = [], ""
    for flag in flags(PredictSettings):
        title = SETTINGS.get(flag.name, title)
        option = typer.Option(*flag.declarations, help=flag.help, rich_help_panel=title)
        kind, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[flag.kind, option]
        settings.append(inspect.Parameter(flag.name, kind, default=None, annotation=annotation))
    parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*own[:-1], *settings, own[-1])]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


@app.command(cls=Grouped)
@_take_settings
def predict(
    input_: Table,
    output: Annotated[
        Path,
        typer.Argument(metavar="OUTPUT", help="A .csv, .tsv, .jsonl or .parquet file to write."),
    ],
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with any of these under [predict].")
    ] = None,
    json_: Json = False,
    **given: object,
) -> None:
    """Answer every row of INPUT and write OUTPUT, in order.

    The same command again goes on where the last one ended, however it did, and asks no row that
    has an answer: only what is new or changed in INPUT. Any option can also be a variable, as in
    MMRAG_TOP_K=3, or stand in the --config file. Exits with 3 if some rows could not be answered.
    """
    settings = load_predict_settings(input_, output, given, environ=os.environ, config_file=config)
    busy = logging.DEBUG if settings.verbose else logging.INFO
    start_logging(logging.WARNING if settings.quiet else busy)
    # Before anything is imported that takes a while.
    log.info("mmrag-batch %s answers %s into %s.", __version__, input_, output)
    values = ((one, getattr(settings, one.name)) for one in fields(settings))
    changed = [f"{one.name} = {value}" for one, value in values if value != one.default]
    log.debug("Settings: %s; the others are by default.", ", ".join(changed))
    from mmrag_batch.run.predict import predict as answer

    answer(settings, _print_summary if json_ else _print_nothing)


@app.command()
def merge(
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="What `predict --shard` was given.")
    ],
    input_: Annotated[
        Path | None, typer.Option("--input", help="The table.  [default: that of the shards]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an OUTPUT that is not as it was.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write OUTPUT from the answers of its shards, however many there were.

    Exits with 4 and lists them if some rows are not answered, with 3 if some have failed.
    """
    start_logging()
    from mmrag_batch.run.merge import merge as join

    join(output, input_, _print_summary if json_ else _print_nothing, overwrite=overwrite)


def _print_summary(summary: "Summary") -> None:
    print_json(asdict(summary))


def _print_nothing(_: object) -> None:
    """What is to be said is in the log."""
