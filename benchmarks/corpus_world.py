"""Questions of the demo world with their own documents, and with all documents in one corpus.

    python -m benchmarks.corpus_world [--rows 2520] [--answered 300] [--searched 2000]

Draws a demo world and pools the documents of its rows: eight a row, and so as many as make the
question hard, for each row deals its own facts about the same things. Answers the first rows with
the packaged bundle, with their own documents and with those of all, which are searched exactly and
then approximately. Then lets the corpus grow by a hundredth, and counts the rows that are asked
again, by the scripted engine; the output is compared with that of a fresh run. Prints two tables in
Markdown.
"""

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.records import Row
from mmrag_batch.table.truth import read_labelled_rows
from mmrag_batch.train.demo_world import write_world


def call(*words: object, script: str = "{}") -> str:
    """What a command says. Raises RuntimeError where it fails."""
    done = CliRunner().invoke(app, [str(word) for word in words], env={"SCRIPTED_ENGINE": script})
    if done.exit_code not in (0, 3):
        raise RuntimeError(f"{words}: {done.output} {done.exception}")
    return done.output


def tell(said: str, word: str) -> None:
    """The line of what a command says that has this word, to the log."""
    typer.echo(next(line for line in said.splitlines() if word in line), err=True)


def pool(rows: Sequence[Row], path: Path) -> None:
    """A table of all documents of rows, each called by its row and its own id."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "text", "image"])
        for row in rows:
            for one in row.question.documents if row.question else ():
                table.writerow([f"{row.number}/{one.id}", one.text, one.image])


def ask(rows: Sequence[Row], path: Path) -> None:
    """The same questions without documents; what is relevant is called as in the pool."""
    names = ("question_text", "question_image", "answer_choices", "label", "relevant")
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, names)
        table.writeheader()
        for row in rows:
            cells = {name: row.cells.get(name) for name in names}
            relevant = row.question.relevant if row.question else None
            if relevant is not None:
                cells["relevant"] = json.dumps([f"{row.number}/{name}" for name in relevant])
            table.writerow(cells)


def compare(folder: Path, answered: int) -> None:
    """The first rows with their own documents, and with those of all."""
    typer.echo("| documents | rows | accuracy | recall@1 | recall@3 | recall@100 |")
    typer.echo("|---|---|---|---|---|---|")
    shared = ("--corpus", folder / "corpus")
    for name, table, options in (
        ("a row's own", "questions.csv", ()),
        ("of all rows, in a corpus", "bare.csv", shared),
        ("the same, searched approximately", "bare.csv", shared),
    ):
        if "approximately" in name:
            tell(call("index", folder / "docs.csv", folder / "corpus", "--approximate"), "nearest")
        out = folder / f"{name}.csv"
        call("predict", folder / table, out, "--limit", answered, "--device", "cpu", *options)
        said = call("evaluate", out, "--json", "--depth", 100)
        figures, _ = json.JSONDecoder().raw_decode(said, said.index("{"))  # the log is around it
        retrieval, more = figures["overall"]["retrieval"], figures["candidates"]["recall"]
        typer.echo(
            f"| {name} | {answered:,} | {figures['overall']['accuracy']['value']:.3f} | "
            f"{retrieval['recall']['1']:.3f} | {retrieval['recall']['3']:.3f} | "
            f"{more['100']:.3f} |"
        )


def grow(folder: Path, rows: Sequence[Row], more: Sequence[Row], searched: int) -> None:
    """How many rows are asked when the corpus has grown."""
    log = folder / "asked"
    script = json.dumps({"log": str(log)})
    options = ("--engine", "scripted", "--limit", searched, "--corpus", folder / "corpus")
    asked = []
    for out in ("out.csv", "out.csv", "fresh.csv"):
        log.unlink(missing_ok=True)
        call("predict", folder / "bare.csv", folder / out, *options, script=script)
        asked.append(len(set(log.read_text().splitlines())))
        if len(asked) == 1:
            pool([*rows, *more], folder / "docs.csv")
            tell(call("index", folder / "docs.csv", folder / "corpus"), "documents;")
    outputs = [(folder / name).read_bytes() for name in ("out.csv", "fresh.csv")]
    typer.echo(
        f"\nOf {searched:,} rows, {asked[0]:,} were asked at first, "
        f"{asked[1]:,} when the corpus had grown, {asked[2]:,} by a fresh run; the outputs are "
        f"{'equal' if outputs[0] == outputs[1] else 'not equal'}."
    )


def main(
    rows: Annotated[int, typer.Option(help="Whose documents are pooled.")] = 2520,
    answered: Annotated[int, typer.Option(help="By the packaged generator; 0: none.")] = 300,
    searched: Annotated[int, typer.Option(help="When the corpus grows.")] = 2000,
) -> None:
    """Pool the documents of a demo world."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_world(folder, rows=rows + max(rows // 100, 1), seed=9501)
        world = list(read_labelled_rows(table))
        pool(world[:rows], folder / "docs.csv")
        ask(world[:rows], folder / "bare.csv")
        tell(call("index", folder / "docs.csv", folder / "corpus"), "documents;")
        if answered:
            compare(folder, answered)
            call("index", folder / "docs.csv", folder / "corpus")
        grow(folder, world[:rows], world[rows:], searched)


if __name__ == "__main__":
    typer.run(main)
