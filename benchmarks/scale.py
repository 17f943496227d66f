"""What a billion documents and a hundred million questions would cost, computed from what was
measured on a few: the tables of docs/scale.md.

    python -m benchmarks.scale

A figure is one that another page shows, one that `benchmarks.row_costs` prints, one that the code
names, or one that is assumed: each says which. Nothing has been run at such sizes.
"""

from math import ceil
from typing import NamedTuple

import numpy as np
import typer

from benchmarks.row_costs import STEPS
from mmrag_batch.retrieval.corpus_segment import ROW
from mmrag_batch.retrieval.corpus_source import TOGETHER
from mmrag_batch.retrieval.store import KEY
from mmrag_batch.run.corpus_writer import SEGMENT
from mmrag_batch.run.index import BATCH
from mmrag_batch.run.store import COMMIT_ROWS, COMMIT_SECONDS

DOCUMENTS, QUESTIONS = 10**9, 10**8
SIZE = 1024
"""Dimensions of a vector, as ImageBind's."""
SIZES = (10**7, 10**8, 10**9)
"""Documents at which limits are looked at, with a tenth as many questions."""


class Figure(NamedTuple):
    """A number, and the words of a page that show it."""

    value: float
    page: str
    words: str


ENGINES, CORPUS, RUNS = "docs/engines.md", "docs/corpus.md", "docs/durable-runs.md"
FOUR_TILES = Figure(10.6, ENGINES, "| | 4 tiles | 10.6 |")
ONE_TILE = Figure(13.5, ENGINES, "| `vllm` | 1 tile | 13.5 |")
ENCODED = Figure(983, ENGINES, "983 of 64, in torch 1,235 and 1,306")
IN_TORCH = Figure(1306, ENGINES, "983 of 64, in torch 1,235 and 1,306")
CARD = Figure(79.2, ENGINES, "of the card's 79.2 GiB")
SEARCHED = Figure(20.2, CORPUS, "| exact | 512 | 20.2 s |")
INDEXED = Figure(119.2, CORPUS, "| make a corpus | 119.2 | 355 MiB |")
MEMORY = Figure(355, CORPUS, "| make a corpus | 119.2 | 355 MiB |")
LESS_MEMORY = Figure(165, CORPUS, "a corpus of 200,000 takes 165 MiB to make")
ANSWERED = Figure(430, RUNS, "| all rows asked | 430 |")
HALF_REPEATED = Figure(1.98, RUNS, "1.98 and 9.05 times as fast")
QUESTION_FIRST = Figure(1479, "docs/models.md", "| with one | 1,479 | 1,495 | 582 |")
EVIDENCE_FIRST = Figure(582, "docs/models.md", "| with one | 1,479 | 1,495 | 582 |")
FIGURES = [one for one in list(globals().values()) if isinstance(one, Figure)]

PEAK = 989e12
"""FLOP/s of an H100 in float16, as its maker says; so the next two."""
CARD_BYTES, BUS_BYTES = 3.35e12, 64e9
"""Bytes a second of its memory, and of what connects it."""
DISK_BYTES, NETWORK_BYTES, HASHED_BYTES = 6e9, 2e9, 8 * 0.5e9
"""Assumed: of a local disk, of a network file system, and of eight cores that hash."""
PICTURE = 152e3
"""Bytes: COCO's train2017 has 118,287 pictures in 18 GB."""
HARD_LIMIT = 4096
"""Assumed: files that a process may have open, where a system is strict."""
MEASURED = (5e-6, 22e-6, 95e-6, 19e-3, 25e-6, 110e-6, 74e-6)
"""Seconds of a processor of each of STEPS, of a machine that others used as well."""
SCAN, READ, LOOK_UP, COMMIT, SURVEY, ADOPT, WRITE = MEASURED
RECORD, ANSWER, OUTPUT = 448, 223, 336
"""Bytes of a document's record, an answer in its store and a row of the output, there as well."""


def encoder_operations(width: int, blocks: int, tokens: int) -> float:
    """FLOP of a transformer encoder: 12 width² a token and block, and attention."""
    return 2.0 * blocks * tokens * (12 * width**2 + 2 * tokens * width)


PICTURE_OPERATIONS = encoder_operations(1280, 32, 257) + 2 * 256 * 1280 * 3 * 14**2 * 2
"""Of ImageBind's ViT-H/14, which reads two frames."""
TEXT_OPERATIONS = encoder_operations(1024, 24, 77)
RATE = IN_TORCH.value * PICTURE_OPERATIONS
"""FLOP/s that products reach on the card, by what torch makes of ViT-H."""
TEXTS = ENCODED.value * PICTURE_OPERATIONS / TEXT_OPERATIONS
"""Texts a second, as if they took what their operations do."""
VECTOR = 2 * SIZE
KEPT = ROW.itemsize + np.dtype(np.uint64).itemsize + 1
"""Bytes of memory a document of an open corpus: its ROW, its tie, whether it counts."""
STORED = KEY.itemsize + 2 * np.dtype(np.int64).itemsize
"""Bytes of memory an embedding of an open store: its KEY, its place and its start, in order."""
EMBEDDING = 4 * SIZE + KEY.itemsize
INDEX_MEMORY = (MEMORY.value - LESS_MEMORY.value) * 2**20 / 800_000
CODE = SIZE / 8 + 2 * 4 + 8
"""Bytes of a document in an index of one bit a dimension (RaBitQ), two factors and a place."""


def table(*rows: tuple[str, ...]) -> str:
    """Rows in Markdown, of which the first is the head."""
    lines = ["| " + " | ".join(row).replace("|  |", "| |") + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def gpu_hours() -> dict[str, tuple[str, float]]:
    """By step: the formula and its hours."""
    pictures, texts, product = f"{ENCODED.value:g}/s", f"{TEXTS:,.0f}/s", f"{RATE / 1e12:.0f}e12/s"
    seconds = {
        "pictures of documents": (f"N / {pictures}", DOCUMENTS / ENCODED.value),
        "texts of documents": (f"N / {texts}", DOCUMENTS / TEXTS),
        "pictures and texts of questions": (
            f"Q / {pictures} + Q / {texts}",
            QUESTIONS / ENCODED.value + QUESTIONS / TEXTS,
        ),
        "search, every document for every question": (
            f"2 D N Q / {product}",
            2.0 * SIZE * DOCUMENTS * QUESTIONS / RATE,
        ),
        "generation": (f"Q / {FOUR_TILES.value}/s", QUESTIONS / FOUR_TILES.value),
    }
    return {step: (formula, value / 3600) for step, (formula, value) in seconds.items()}


def hours_table() -> str:
    hours = gpu_hours()
    total = sum(value for _, value in hours.values())
    rows = [(step, how, f"{v:,.0f}", f"{v / total:.0%}") for step, (how, v) in hours.items()]
    head = ("step", "formula", "GPU hours", "share")
    return table(head, *rows, ("all", "", f"{total:,.0f}", "100%"))


def savings_table() -> str:
    """What makes generation cheaper, one at a time."""
    base = QUESTIONS / FOUR_TILES.value / 3600
    order = QUESTION_FIRST.value / EVIDENCE_FIRST.value
    ways = (
        ("images of one tile in place of four", ONE_TILE.value / FOUR_TILES.value, "engine"),
        ("half of the questions repeat one", HALF_REPEATED.value, "answer_store"),
        ("eight rows in turn share evidence, which comes first", order, "prompt_order"),
    )
    rows = [
        (what, f"{ratio:.2f}", f"{base / ratio:,.0f}", source.join(("`", "`")))
        for what, ratio, source in ways
    ]
    head = ("what", "times as fast", "GPU hours then", "measured by `benchmarks/`")
    return table(head, *rows).replace("`engine`", "`gpu/serving`")


def bytes_table() -> str:
    def row(what: str, formula: str, size: float, count: int) -> tuple[str, ...]:
        return what, formula, f"{size:,.0f}", _bytes(size * count)

    return table(
        ("of a corpus, or an output", "formula", "bytes each", "of all"),
        row("`.vectors`, float16", "2 D", VECTOR, DOCUMENTS),
        row("`.rows`", "`ROW`", ROW.itemsize, DOCUMENTS),
        row("`.documents`, texts of 300 characters", "measured", RECORD, DOCUMENTS),
        row(
            "`embeddings/`, float32, a picture and a text", "2 (4 D + `KEY`)", 2 * EMBEDDING, 10**9
        ),
        row("`.faiss`, one bit a dimension, where asked for", "D / 8 + 16", CODE, DOCUMENTS),
        row("the pictures themselves, as COCO's", "18 GB / 118,287", PICTURE, DOCUMENTS),
        row("answers in stores", "measured", ANSWER, QUESTIONS),
        row("`out.csv`", "measured", OUTPUT, QUESTIONS),
    )


def passes_table() -> str:
    places = {
        f"memory of {ceil(DOCUMENTS * VECTOR / (CARD.value * 2**30))} cards": CARD_BYTES,
        "memory of the machines, by PCIe 5": BUS_BYTES,
        "local disks": DISK_BYTES,
        "a network file system": NETWORK_BYTES,
    }
    rows = []
    for place, speed in places.items():
        hours = QUESTIONS / TOGETHER * DOCUMENTS * VECTOR / speed / 3600
        cells = f"{speed / 1e9:,.0f} GB/s", f"{RATE / speed:,.0f}", f"{hours:,.0f}"
        rows.append((place, *cells))
    today = f"hours of reading with today's {TOGETHER}"
    return table(("vectors lie in", "read at, a card", "questions a pass", today), *rows)


def limits_table() -> str:
    def row(limit: str, where: str, cells: list[str], instead: str) -> tuple[str, ...]:
        return limit, f"`{where}`", *cells, instead

    segments = [documents / SEGMENT for documents in SIZES]
    questions = [documents / 10 for documents in SIZES]
    most = HARD_LIMIT // 2 * SEGMENT
    file_bytes = VECTOR + ROW.itemsize + RECORD
    pair = SEARCHED.value / (512 * 1_000_000)
    looked_up = [
        (n / BATCH * s / 2 * LOOK_UP + s**2 / 2 * COMMIT) / 3600 for n, s in zip(SIZES, segments)
    ]
    return table(
        ("limit", "in", *(f"{size // 10**6:,} M" for size in SIZES), "in its place"),
        row(
            "every product on a processor, core hours",
            "retrieval/search.py",
            [f"{pair * n * q / 3600:,.0f}" for n, q in zip(SIZES, questions)],
            "`--approximate`; a GPU for each part of the vectors",
        ),
        row(
            "every run of `index` reads every picture",
            "run/index.py",
            [_bytes(PICTURE * n) for n in SIZES],
            "size and time first, bytes where they differ",
        ),
        row(
            "open files, 2 a segment",
            "retrieval/corpus.py",
            [f"{2 * ceil(s):,}" for s in segments],
            f"larger segments; where {HARD_LIMIT:,} is the hard limit, {most / 1e6:.0f} M will do",
        ),
        row(
            f"memory of `index`, {INDEX_MEMORY:.0f} bytes a document",
            "run/corpus_writer.py",
            [_bytes(INDEX_MEMORY * n) for n in SIZES],
            "ids sorted on disk; a version that is a sum over segments",
        ),
        row(
            "new documents looked up in every segment, hours",
            "run/corpus_writer.py",
            [f"{hours:,.1f}" for hours in looked_up],
            "segments by hash of the id: each document asks one",
        ),
        row(
            "one writer reads, checks and writes all, hours",
            "run/index.py",
            [f"{INDEXED.value / 1e6 * n / 3600:,.1f}" for n in SIZES],
            "shards write segments of their own; the last command names them",
        ),
        row(
            "each shard of `index` reads the whole table, hours",
            "table/documents.py",
            [f"{READ * n / 3600:,.1f}" for n in SIZES],
            "a table in files, of which a shard takes its own",
        ),
        row(
            "a corpus is hashed by each process that opens it, minutes",
            "retrieval/corpus.py",
            [f"{file_bytes * n / HASHED_BYTES / 60:,.1f}" for n in SIZES],
            "a segment is checked when it is first read, once a machine",
        ),
        row(
            f"memory of who searches, {KEPT} bytes a document",
            "retrieval/corpus.py",
            [_bytes(KEPT * n) for n in SIZES],
            "rows are read with their vectors",
        ),
        row(
            f"memory of who searches approximately, {CODE:.0f} bytes more",
            "retrieval/approximate.py",
            [_bytes(CODE * n) for n in SIZES],
            "an index for each part of the segments; lists merge by score and tie",
        ),
        row(
            f"memory of the embedding store, {2 * STORED} bytes a document",
            "retrieval/store.py",
            [_bytes(2 * STORED * n) for n in SIZES],
            "a sorted file of keys for each part",
        ),
        row(
            "each task reads the whole table of questions twice, minutes",
            "run/survey.py",
            [f"{2 * SCAN * q / 60:,.1f}" for q in questions],
            "a table in files, a task a file",
        ),
        row(
            "one process merges and writes one file, hours",
            "run/merge.py",
            [f"{(SURVEY + ADOPT + WRITE) * q / 3600:,.1f}" for q in questions],
            "an output in parts, each published by who answered it",
        ),
    )


def measured_table() -> str:
    return table(
        ("step", "in", "of a processor"),
        *((what, f"`{where}`", _seconds(v)) for (what, where), v in zip(STEPS, MEASURED)),
    )


def cards_of_a_day() -> int:
    """H100s that answer all questions in a day."""
    return ceil(QUESTIONS / FOUR_TILES.value / 86_400)


def sentences() -> dict[str, str]:
    """What the page says in its text, by what it is about."""
    fed = 1e6 / ANSWERED.value / FOUR_TILES.value
    seconds = min(COMMIT_ROWS / FOUR_TILES.value, COMMIT_SECONDS)
    cards = cards_of_a_day()
    cores = SEARCHED.value / (512 * 1_000_000) * SIZES[0] * FOUR_TILES.value
    return {
        "utilisation": f"{RATE / 1e12:.0f} TFLOP/s, {RATE / PEAK:.0%} of its peak",
        "cards": f"{cards} H100s answer in a day",
        "one process": f"{1e6 / ANSWERED.value:,.0f} rows/s, what {fed:.0f} cards answer",
        "processors": f"{cores:.0f} cores beside each GPU",
        "commits": f"every {seconds:g} s, {cards / seconds:.0f} in all",
    }


TABLES = (hours_table, savings_table, bytes_table, passes_table, limits_table, measured_table)


def _bytes(size: float) -> str:
    name, unit = next((n, u) for n, u in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if size >= u)
    return f"{size / unit:,.3g} {name}" if size / unit < 1000 else f"{size / unit:,.0f} {name}"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def main() -> None:
    """Print every table, and what the text says."""
    for make in TABLES:
        typer.echo(make() + "\n")
    for what, words in sentences().items():
        typer.echo(f"{what}: {words}")


if __name__ == "__main__":
    typer.run(main)
