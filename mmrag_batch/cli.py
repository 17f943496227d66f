"""The command line: parse, call, map errors to exit codes.

`_Commands.invoke` is the one place where errors are caught. What a command needs is imported
inside of it, so that `--help` loads nothing heavy.
"""

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from mmrag_batch import __version__
from mmrag_batch.cli_models import export, train
from mmrag_batch.config import (
    DeviceName,
    DtypeName,
    EngineName,
    IfLocked,
    load_predict_settings,
)
from mmrag_batch.errors import ExitCode, MmragError
from mmrag_batch.masking import MaskingFormatter, mask

NOT_SETTINGS = frozenset({"input_", "output", "config"})
"""Parameters of `predict` that only the command line has."""
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})


class _Commands(TyperGroup):
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
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train, name="train")
app.add_typer(export, name="export")


def _refuse_stdin(table: Path) -> Path:
    if str(table) == "-":
        raise typer.BadParameter("a table is read more than once; write it to a file first")
    return table


Table = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A .csv, .csv.gz, .jsonl or .parquet table.",
        callback=_refuse_stdin,
    ),
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Where image paths start.  [default: the folder of INPUT]")
]
MediaDomain = Annotated[
    str | None, typer.Option(help="Hosts to fetch images from, with commas.  [default: none]")
]


def main() -> None:
    """The console script."""
    app(prog_name="mmrag-batch")


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


@app.command()
def predict(
    ctx: typer.Context,
    input_: Table,
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="A .csv, .csv.gz or .jsonl file to write.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="The models.  [default: the demo bundle]")
    ] = None,
    engine: Annotated[EngineName | None, typer.Option(help="What generates.")] = None,
    device: Annotated[DeviceName | None, typer.Option(help="Where models run.")] = None,
    dtype: Annotated[DtypeName | None, typer.Option(help="Of the generator.")] = None,
    image_root: ImageRoot = None,
    allow_media_domain: MediaDomain = None,
    top_k: Annotated[
        int | None, typer.Option(help="Documents kept a question.  [default: the bundle's]")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(help="Images shown a question.  [default: the bundle's]")
    ] = None,
    embedding_cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps embeddings for other runs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Questions at once, for transformers.  [default: 8]")
    ] = None,
    engine_rows: Annotated[
        int | None, typer.Option(help="The same for vllm and openai.  [default: what fits; 64]")
    ] = None,
    engine_tokens: Annotated[
        int | None, typer.Option(help="Tokens a step of vllm.  [default: for 4 questions' images]")
    ] = None,
    kv_cache_gib: Annotated[
        int | None, typer.Option(help="vllm's KV cache.  [default: what is free, or needed]")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="The server of the openai engine: http://host:8000")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="What it calls the model.  [default: its first]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest free-form answer.  [default: 32]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Read only the first rows.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Answer one part of the rows, as 0/4.  [default: by the Slurm array]"),
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite/--no-overwrite", help="Replace OUTPUT.")
    ] = None,
    fresh: Annotated[
        bool | None, typer.Option("--fresh", help="Begin anew; what is there is moved aside.")
    ] = None,
    extend: Annotated[
        bool | None, typer.Option("--extend", help="INPUT has got more rows at its end.")
    ] = None,
    retry_errors: Annotated[
        bool | None, typer.Option("--retry-errors", help="Ask the failed rows of OUTPUT again.")
    ] = None,
    repair: Annotated[
        bool | None, typer.Option("--repair", help="Go on from before damage in the journal.")
    ] = None,
    max_row_errors: Annotated[
        str | None, typer.Option(help="End early when more rows fail, as 20 or 0.05 of them.")
    ] = None,
    max_runtime: Annotated[
        int | None, typer.Option(help="Stop after so many seconds, as by a signal.")
    ] = None,
    row_timeout: Annotated[
        int | None, typer.Option(help="Seconds an engine may be silent.  [default: 3600]")
    ] = None,
    grace: Annotated[
        int | None, typer.Option(help="Seconds to finish rows in, when stopped.  [default: 30]")
    ] = None,
    if_locked: Annotated[
        IfLocked | None, typer.Option(help="When another run writes OUTPUT.  [default: fail]")
    ] = None,
    metrics_file: Annotated[
        Path | None, typer.Option(help="Write metrics for Prometheus to this file.")
    ] = None,
    quiet: Annotated[
        bool | None, typer.Option("--quiet/--no-quiet", help="Print nothing on success.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with any of these under [predict].")
    ] = None,
) -> None:
    """Answer every row of INPUT and write OUTPUT, in order.

    The same command again goes on where the last one ended, however it did, and does nothing when
    OUTPUT is complete. Any option can also be a variable, as in MMRAG_TOP_K=3, or stand in the
    --config file. Exits with 3 if some rows could not be answered.
    """
    flags = {name: value for name, value in ctx.params.items() if name not in NOT_SETTINGS}
    settings = load_predict_settings(input_, output, flags, environ=os.environ, config_file=config)
    _start_logging(logging.WARNING if settings.quiet else logging.INFO)
    from mmrag_batch.predict import predict as answer

    raise typer.Exit(answer(settings))


@app.command()
def merge(
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="What `predict --shard` was given.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
) -> None:
    """Join the shards of OUTPUT, once it is proven that they are all of it.

    Exits with 4 and lists them if some are not finished, with 3 if some rows have no answer.
    """
    _start_logging(logging.INFO)
    from mmrag_batch.scale.merge import merge as join

    if join(output, overwrite=overwrite).rows["error"]:
        raise typer.Exit(ExitCode.PARTIAL)


@app.command()
def status(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="What `predict` writes.")],
) -> None:
    """Show how far a run is, how fast, and what failed.

    Exits with 66 if there is no run of this OUTPUT, with 78 if it was changed since it was written.
    """
    from mmrag_batch.status import describe

    for line in describe(output):
        typer.echo(line)


@app.command()
def validate(
    input_: Table, image_root: ImageRoot = None, allow_media_domain: MediaDomain = None
) -> None:
    """Show what is wrong with INPUT, by line, before a model is loaded.

    Exits with 3 if some rows could not be answered, with 65 if it cannot be read as a table.
    """
    from mmrag_batch.factory import split_hosts
    from mmrag_batch.io.check import check_table
    from mmrag_batch.io.images import ImageLoader

    problems = 0
    unanswerable = set()
    hosts = split_hosts(allow_media_domain or "")
    images = ImageLoader(image_root or input_.parent, hosts=hosts)
    for line, name, problem, fatal in check_table(input_, images):
        typer.echo(f"{input_}:{line}: {name}: {problem.code}: {problem.message}")
        problems += 1
        if fatal:
            unanswerable.add(line)
    typer.echo(f"{input_}: {problems} problems; {len(unanswerable)} rows would get no answer.")
    if unanswerable:
        raise typer.Exit(ExitCode.PARTIAL)


@app.command()
def evaluate(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="What `predict` wrote.")],
    by: Annotated[list[str] | None, typer.Option(help="Also by this column; repeatable.")] = None,
    format_: Annotated[Literal["text", "json"], typer.Option("--format")] = "text",
) -> None:
    """Accuracy, retrieval and calibration of an OUTPUT whose rows have labels."""
    from mmrag_batch.factory import requires

    with requires("report"):
        from mmrag_batch.report.metrics import evaluate as measure
        from mmrag_batch.report.text import as_json, as_text

    metrics = measure(output, by=by or [])
    typer.echo(as_json(metrics) if format_ == "json" else as_text(metrics))


@app.command()
def doctor() -> None:
    """Show what this machine can run and what is missing, with the line to type.

    Exits with 69 if `predict` cannot run.
    """
    from mmrag_batch.doctor import check, describe, show

    checks = check()
    typer.echo("\n".join([*describe(), "", *show(checks)]))
    if not checks[0].works:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _start_logging(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("mmrag_batch").setLevel(level)
