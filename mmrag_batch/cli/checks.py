"""The commands that look and change no answer: at a table, an output, a run, this machine."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmrag_batch.cli.facts import Json, print_json
from mmrag_batch.cli.logs import start_logging
from mmrag_batch.errors import ExitCode
from mmrag_batch.masking import mask
from mmrag_batch.settings import load_predict_settings
from mmrag_batch.trackers import TrackerName, check_tracker, send

checks = typer.Typer(rich_markup_mode=None)


def _refuse_stdin(table: Path) -> Path:
    if str(table) == "-":
        raise typer.BadParameter("a table is read more than once; write it to a file first")
    return table


Table = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A .csv, .tsv, .jsonl or .parquet table, here or at s3://, gs://, hf://; text may "
        "end in .gz.",
        callback=_refuse_stdin,
    ),
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Where image paths start.  [default: the folder of INPUT]")
]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="What `predict` writes.")]
Written = Annotated[Path, typer.Argument(metavar="OUTPUT", help="What `predict` wrote.")]
BundleOfRun = Annotated[Path | None, typer.Option(help="The models.  [default: the run's]")]
RootOfRun = Annotated[
    Path | None, typer.Option(help="Where image paths start.  [default: as in the run]")
]
Store = Annotated[
    Path | None, typer.Option(help="What `predict` was given.  [default: OUTPUT.store]")
]
MediaDomain = Annotated[
    str | None, typer.Option(help="Hosts to fetch images from, with commas.  [default: none]")
]
Remote = Annotated[
    str | None,
    typer.Option(help="Where images may lie on object stores, with commas.  [default: nowhere]"),
]
LabelReading = Annotated[
    Literal["text", "index", "letter"] | None,
    typer.Option("--labels", help="What labels are.  [default: what fits the whole column]"),
]
ColumnNames = Annotated[
    str | None,
    typer.Option(help="What the table calls our columns: question_image=image,label=answer"),
]


@checks.command()
def validate(
    input_: Table,
    image_root: ImageRoot = None,
    allow_media_domain: MediaDomain = None,
    allow_remote: Remote = None,
    labels: LabelReading = None,
    columns: ColumnNames = None,
    json_: Json = False,
) -> None:
    """Show what is wrong with INPUT, by line, before a model is loaded.

    Exits with 3 if some rows could not be answered, with 65 if it cannot be read as a table.
    """
    from mmrag_batch.run.validate import find_facts
    from mmrag_batch.run.validate import validate as look

    given = {
        "image_root": image_root,
        "allow_media_domain": allow_media_domain,
        "allow_remote": allow_remote,
        "columns": columns,
    }
    settings = load_predict_settings(input_, input_, given, environ=os.environ)
    if json_:
        facts = find_facts(settings, labels)
        print_json(facts)
        unanswerable = facts["unanswerable"]
    else:
        unanswerable = look(settings, labels, typer.echo)
    if unanswerable:
        raise typer.Exit(ExitCode.PARTIAL)


@checks.command()
def evaluate(
    output: Written,
    by: Annotated[list[str] | None, typer.Option(help="Also by this column; repeatable.")] = None,
    labels: LabelReading = None,
    columns: ColumnNames = None,
    ablate: Annotated[
        str | None,
        typer.Option(help="Ask rows again without these: evidence,question-image,oracle"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows --ablate asks at most.")] = 300,
    store: Store = None,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="Rank once more, for recall among so many documents as well."),
    ] = None,
    log_to: Annotated[TrackerName, typer.Option(help="Send the figures there as well.")] = "none",
    json_: Json = False,
) -> None:
    """Accuracy, retrieval and calibration of an OUTPUT whose rows have labels.

    With --ablate also what its evidence and its pictures are worth, and what the best evidence
    would be: some rows are asked again, in OUTPUT.ablations, and compared with themselves.
    """
    from mmrag_batch.extras import requires
    from mmrag_batch.table.names import parse_names

    check_tracker(log_to)
    given = {"columns": columns}
    settings = load_predict_settings(output, output, given, environ=os.environ)
    with requires("report"):
        from mmrag_batch.report.metrics import evaluate as measure
        from mmrag_batch.report.text import as_text, sum_up, tell_ablations
        from mmrag_batch.run.ablate import ablate as ask
        from mmrag_batch.run.ablate import parse_ablations

    names = parse_names(settings.columns)
    wanted = [] if ablate is None else parse_ablations(ablate)
    metrics = measure(output, by=by or [], reading=labels, names=names)
    if depth is not None:
        from mmrag_batch.run.depth import measure_depth

        metrics = replace(metrics, candidates=measure_depth(output, depth, given, store=store))
    compared = []
    if wanted:
        start_logging()
        compared = ask(output, wanted, rows=rows, given=given, store=store, reading=labels)
    figures = asdict(metrics) | ({"ablations": sum_up(compared)} if compared else {})
    if json_:
        print_json(figures)
    else:
        typer.echo(as_text(metrics))
        if compared:
            typer.echo(f"\n{tell_ablations(compared)}")
    if log_to != "none":
        start_logging()
        send(log_to, output.parent, output.name, figures)


@checks.command()
def status(
    output: Output,
    write: Annotated[
        Path | None, typer.Option(help="Write the rows that are answered so far to this file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Show how far a run is and all of its shards are, how fast, and what failed.

    Exits with 66 if there is no run of this OUTPUT, with 78 if it was changed since it was written.
    """
    from mmrag_batch.run.answers import in_words
    from mmrag_batch.run.files import Paths
    from mmrag_batch.run.merge import write_so_far
    from mmrag_batch.run.status import describe, facts_of, find_standing

    paths = Paths.of(output, store)
    if write is not None:
        rows = write_so_far(paths, write, overwrite=overwrite)
        if json_:
            print_json({"output": str(output), "written": str(write), "rows": rows})
        else:
            done = f"{sum(rows.values()):,} rows are answered so far ({in_words(rows)})"
            typer.echo(f"{write}: {done}.")
        return
    standing = find_standing(paths)
    print_json(facts_of(standing)) if json_ else typer.echo(mask("\n".join(describe(standing))))
    standing.check()


@checks.command()
def explain(
    output: Output,
    row: Annotated[str, typer.Argument(metavar="ROW", help="The `id` of a row, or its number.")],
    bundle: BundleOfRun = None,
    image_root: RootOfRun = None,
    allow_media_domain: MediaDomain = None,
    allow_remote: Remote = None,
    labels: LabelReading = None,
    columns: ColumnNames = None,
    store: Store = None,
    json_: Json = False,
) -> None:
    """Show what became of one row: asked, ranked, cut, rendered, answered; and why it failed.

    Rows are counted from 0. Documents are ranked and the prompt is made once more, by the run's own
    settings; the generator is not loaded. Exits with 66 if there is no such row.
    """
    from mmrag_batch.report.explanation import as_text, facts_of
    from mmrag_batch.run.explain import explain as look

    given = {
        "bundle": bundle,
        "image_root": image_root,
        "allow_media_domain": allow_media_domain,
        "allow_remote": allow_remote,
        "columns": columns,
    }
    explanation = look(output, row, given, store=store, reading=labels)
    print_json(facts_of(explanation)) if json_ else typer.echo(as_text(explanation))


@checks.command()
def report(
    output: Output,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    compare: Annotated[
        Path | None, typer.Option(help="Another output of the same rows, to set beside it.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Figures by this column; repeatable.  [default: those with few values]"),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows it shows at most.")] = 300,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is no page of ours.")
    ] = False,
    image_root: RootOfRun = None,
    allow_media_domain: MediaDomain = None,
    allow_remote: Remote = None,
    labels: LabelReading = None,
    columns: ColumnNames = None,
    store: Store = None,
) -> None:
    """Write ONE page of HTML on an OUTPUT: its figures, and rows to browse with their pictures.

    The page asks nothing of any server, so it can be mailed. Of a run that is not finished it shows
    the rows answered so far. Exits with 66 if there is no run, with 73 if the page would replace
    another file.
    """
    from mmrag_batch.extras import requires

    with requires("report"):
        from mmrag_batch.run.report import Asked, write_report

    given = {
        "image_root": image_root,
        "allow_media_domain": allow_media_domain,
        "allow_remote": allow_remote,
        "columns": columns,
    }
    size = write_report(
        Asked(output, store, labels, by or None, rows, compare), out, given, overwrite=overwrite
    )
    typer.echo(f"{out}: {size / 2**20:.1f} MiB")


@checks.command()
def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option(help="A bundle: ask its model with transformers and with vLLM, and compare."),
    ] = None,
    json_: Json = False,
) -> None:
    """Show what this machine can run and what is missing, with the line to type.

    Exits with 69 if `predict` cannot run, or if a bundle's two engines do not agree.
    """
    from mmrag_batch.doctor import agree, check, compare, describe, facts_of, show, tell

    if bundle is not None:
        parity = compare(bundle)
        works = agree(parity)
        if json_:
            print_json({"bundle": str(bundle), "agree": works, **asdict(parity)})
        else:
            typer.echo(tell(bundle, parity))
    else:
        abilities = check()
        works = abilities[0].works
        if json_:
            print_json(facts_of(abilities))
        else:
            typer.echo("\n".join([*describe(), "", *show(abilities)]))
    if not works:
        raise typer.Exit(ExitCode.UNAVAILABLE)
