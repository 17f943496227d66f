"""What a processor takes for one document, row or answer, beside every model: the parts of a run
whose time grows with the table, each alone.

    python -m benchmarks.row_costs [--rows 65536]

Prints a table in Markdown, and how many bytes a document's record, an answer and a row of the
output take. docs/scale.md reckons with them.
"""

import csv
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import process_time
from typing import Annotated

import numpy as np
import typer

from mmrag_batch.records import Answer
from mmrag_batch.retrieval.corpus_manifest import Models
from mmrag_batch.run.adopt import adopt
from mmrag_batch.run.answers import Start, no_rows, to_kept
from mmrag_batch.run.corpus_writer import SEGMENT, CorpusWriter
from mmrag_batch.run.index import BATCH
from mmrag_batch.run.keys import key_maker
from mmrag_batch.run.presentation import Presentation
from mmrag_batch.run.publish import Tally, write_answers
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import take_survey
from mmrag_batch.table.documents import read_documents
from mmrag_batch.table.rows import read_rows, scan

STEPS = (
    ("a row of a table is scanned", "table/rows.py"),
    ("a document of a table is read", "table/documents.py"),
    (f"{BATCH} documents are looked up in a segment", "run/corpus_writer.py"),
    (f"{SEGMENT:,} documents are looked up in a segment", "run/corpus_writer.py"),
    ("a question is read, its key made and looked up", "run/survey.py"),
    ("an answer is taken from a shard's store", "run/adopt.py"),
    ("a row of the output is written", "run/publish.py"),
)
Seconds = Iterator[float]


def time(step: Callable[[], object], count: int = 1) -> float:
    """Seconds of a processor that a step takes, by how often it does the same."""
    started = process_time()
    step()
    return (process_time() - started) / count


def write_tables(folder: Path, rows: int) -> tuple[Path, Path]:
    """A table of questions, and one of documents of 300 characters."""
    questions, documents = folder / "in.csv", folder / "docs.csv"
    with questions.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["question_text", "question_image", "answer_choices"])
        for n in range(rows):
            asked = f"What is the rated load of the crane number {n:05} that is shown here?"
            table.writerow([asked, f"photos/{n:05}.jpg", '["5 t", "10 t", "20 t"]'])
    with documents.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "text", "image"])
        table.writerows([f"d{n:09}", text_of(n), f"photos/{n:09}.jpg"] for n in range(rows))
    return questions, documents


def text_of(number: int) -> str:
    """300 characters."""
    return f"{'the crane lifts ten tonnes, says page ' * 8}{number}"[-300:].rjust(300, "x")


def read(questions: Path, documents: Path, rows: int) -> Seconds:
    """The first two of STEPS."""
    yield time(lambda: sum(1 for _ in scan(questions)), rows)
    yield time(lambda: sum(1 for _ in read_documents(documents)), rows)


def look_up(folder: Path, rows: int, sizes: dict[str, float]) -> Seconds:
    """The next two: in a segment of so many documents."""
    random = np.random.default_rng(0)
    known, strange = (random.bytes(16 * rows) for _ in range(2))
    hashes = [known[at : at + 16] for at in range(0, 16 * rows, 16)]
    names = np.frombuffer(strange, "S16")
    with CorpusWriter(folder / "corpus", Models("made", "up", 1), folder) as writer:
        for n, name in enumerate(hashes):
            place = f"photos/{n:09}.jpg"
            record = {"id": f"d{n:09}", "text": text_of(n), "image": place, "digest": "0" * 64}
            writer.add(name, name, record | {"other": {}}, np.zeros(1, np.float16))
        writer.commit()
        (segment,) = writer._segments
        batches = [names[at : at + BATCH] for at in range(0, rows, BATCH)]
        yield time(lambda: [list(segment.find(one)) for one in batches], len(batches))
        yield time(lambda: list(segment.find(names)))
    (file,) = (folder / "corpus").glob("*.documents")
    sizes["record"] = file.stat().st_size / rows


def answer(questions: Path, folder: Path, rows: int, sizes: dict[str, float]) -> Seconds:
    """The last three: answers of one store are taken into another, and written."""
    key_of = key_maker({})
    evidence = tuple((f"corpus:d{n:09}", 16.4466) for n in range(3))
    said = Answer("ok", "10 t", 1, (0.0123456, 0.912345, 0.0753099), evidence)
    with AnswerStore(folder / "shard", lambda: None) as shard:
        shard.begin(Start(0, rows, 0, no_rows(), 0.0, {}, {}))
        for row in read_rows(questions):
            if row.question is not None:
                shard.keep(key_of(row.question), to_kept(said, start=1, images=b""))
        shard.end()
    sizes["answer"] = (folder / "shard").stat().st_size / rows
    with AnswerStore(folder / "store", lambda: None) as store:
        started = process_time()
        with closing(take_survey(questions, store, key_of, lambda *_: True)) as survey:
            yield (process_time() - started) / rows
            yield time(lambda: adopt(store, [folder / "shard"], survey, frozenset()), rows)
            output = folder / "out.csv"
            about = (survey, store, Tally(), Presentation())
            yield time(lambda: write_answers(output, output.name, *about), rows)
    sizes["output"] = (
        output.stat().st_size - len(output.read_bytes().partition(b"\n")[0]) - 1
    ) / rows


def measure(folder: Path, rows: int) -> tuple[list[float], dict[str, float]]:
    """The seconds of STEPS, and the bytes of a record, an answer and a row of the output."""
    sizes: dict[str, float] = {}
    questions, documents = write_tables(folder, rows)
    seconds = [*read(questions, documents, rows), *look_up(folder, rows, sizes)]
    return [*seconds, *answer(questions, folder, rows, sizes)], sizes


def main(rows: Annotated[int, typer.Option(help="Of each table.")] = SEGMENT) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, sizes = measure(Path(folder), rows)
    typer.echo("| step | in | of a processor |\n|---|---|---|")
    for (step, where), value in zip(STEPS, seconds):
        typer.echo(f"| {step} | `{where}` | {value * 1e6:.4g} µs |")
    typer.echo(", ".join(f"{what}: {size:.0f} bytes" for what, size in sizes.items()))


if __name__ == "__main__":
    typer.run(main)
