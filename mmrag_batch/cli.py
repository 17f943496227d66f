"""The command line: parse, call, map errors to exit codes.

`_Commands.invoke` is the one place where errors are caught. What a command needs is imported
inside of it, so that `--help` loads nothing heavy.
"""

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mmrag_batch import __version__
from mmrag_batch.cli_checks import ImageRoot, MediaDomain, Table, checks
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
app.add_typer(checks)
app.add_typer(train, name="train")
app.add_typer(export, name="export")


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
    from mmrag_batch.run.predict import predict as answer

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


def _start_logging(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("mmrag_batch").setLevel(level)
