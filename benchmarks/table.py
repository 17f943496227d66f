"""Every ratio that is measured here, and the page that shows them: docs/performance.md."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.ratios import Ratio

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->"
HEADER = (
    "| # | compared | goal | ratio | spread | repetitions | outside load | verdict |",
    "|---|---|---|---|---|---|---|---|",
)
GPU = "gpu"
"""What is measured by benchmarks/gpu, where there is a GPU."""


@dataclass(frozen=True, slots=True)
class Program:
    """A module of benchmarks/ that measures ratios: most seconds, a package that it needs, and a
    folder to import from."""

    limit: int
    needs: str = ""
    path: str = "."


PROGRAMS = {
    "encoders": Program(420),
    "engine": Program(600, "vllm"),
    "pipeline": Program(420, "vllm"),
    "memory": Program(300),
    "cache": Program(300),
    "start": Program(300),
    "durability": Program(420),
    "images": Program(180),
    "retriever": Program(300),
    "answer_store": Program(420),
    "corpus": Program(300),
    "prompt_order": Program(420, "vllm", "tests/families/doubles"),
    "preparation": Program(180, "vllm"),
}
OTHERS = {
    "corpus_world": "what one corpus for all rows does to the answers of the demo",
    "demo_bundle": "what the demo bundle is worth on new worlds",
    "fuzz": "whether what is read keeps its promise, whatever stands in a table",
    "gpu": "what only a GPU answers",
    "hard_negatives": "what towers learn against the nearest documents of a corpus",
    "merge": "peak memory of a merge, beside its bound",
    "qlora": "what QLoRA teaches the demo's generator",
    "ray": "what it costs to run on a Ray cluster",
    "row_costs": "what a row and a document cost, step by step",
    "scale": "what a billion documents would cost, reckoned",
    "several_engines": "what two engines answer, and vLLM's data parallelism beside them",
    "sequences": "whether stores survive sequences of commands, kills and damages",
    "shared_images": "what it saves to encode an image once that rows share",
}
"""Modules of benchmarks/ that have no line in the table."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line of the table before it is measured. The goal is a bound, such as `≥ 1.1x`; `key` is
    a number and, where it has several lines, a letter."""

    key: str
    module: str
    compared: str
    goal: str

    def is_met(self, value: float) -> bool:
        sign, bound = re.match(r"([≥≤]) ([\d.,]+)", self.goal).groups()  # type: ignore[union-attr]
        limit = float(bound.replace(",", ""))
        return value >= limit if sign == "≥" else value <= limit

    def unit(self) -> str:
        return re.sub(r"[≥≤] [\d.,]+", "", self.goal)


COMPARISONS = (
    Comparison(
        "1a", "encoders", "ONNX Runtime, fp32, against torch: pictures (2 layers of 32)", "≥ 1.1x"
    ),
    Comparison("1b", "encoders", "the same: texts (2 layers of 24)", "≥ 1.1x"),
    Comparison("2a", "encoders", "ONNX Runtime, int8, against torch in fp32: pictures", "≥ 4x"),
    Comparison("2b", "encoders", "the same: texts", "≥ 4x"),
    Comparison("2c", "encoders", "top-5 agreement of int8 with torch in fp32", "≥ 99%"),
    Comparison(
        "3",
        "encoders",
        "texts, 20 tokens on average, trimmed and in batches by length, against padded to 77",
        "≥ 2.5x",
    ),
    Comparison(
        "4", "engine", "a row more by the vLLM engine, of its time in `LLM.chat`", "≤ 1.03x"
    ),
    Comparison(
        "5a", "pipeline", "whole pipeline, of the time of its stages one after the other", "≤ 0.9x"
    ),
    Comparison("5b", GPU, "the same on a GPU, of the slower stage's time", "≤ 1.05x"),
    Comparison(
        "6",
        "engine",
        "a window that is kept full against `LLM.chat` in chunks of 32 rows, answers of 1 to 128 "
        "tokens (128 rows)",
        "≥ 1.3x",
    ),
    Comparison(
        "7",
        "pipeline",
        "whole pipeline against a loop: retrieval and transformers, a row at a time",
        "≥ 4x",
    ),
    Comparison(
        "8a",
        "memory",
        "peak memory of 9,000 rows, of that of 4,000, one of them 100 times as slow",
        "≤ 1.05x",
    ),
    Comparison(
        "8b",
        "memory",
        "held for 64 rows with a photo of 12 megapixels each, 32 of them in flight",
        "≤ 2 GiB",
    ),
    Comparison(
        "9a", "cache", "retrieval with a cache against without: no document repeats", "≥ 0.99x"
    ),
    Comparison("9b", "cache", "the same: 50% of the documents repeat", "≥ 1.9x"),
    Comparison("9c", "cache", "the same: 90% repeat", "≥ 8x"),
    Comparison(
        "10a",
        "start",
        "from the models being loaded to the first answer: 10,000 rows, of the time with 100",
        "≤ 1.1x",
    ),
    Comparison(
        "10b",
        "start",
        "`predict` until the models are loaded, of importing what it runs on",
        "≤ 1.15x",
    ),
    Comparison(
        "11",
        "durability",
        "killed at 50% and resumed, less one start, of an uninterrupted run (400 rows)",
        "≤ 1.03x",
    ),
    Comparison(
        "12",
        "images",
        "a JPEG of 12 megapixels, decoded once and halved, against plain Pillow twice",
        "≥ 3x",
    ),
    Comparison(
        "13",
        "retriever",
        "an epoch of training on cached embeddings against encoding (2 layers of 32)",
        "≥ 50x",
    ),
    Comparison("14", "start", "`mmrag-batch --help`, of `import typer`", "≤ 2x"),
    Comparison(
        "15a",
        "answer_store",
        "rows a second without a model, beyond a start (10,000 rows)",
        "≥ 5,000/s",
    ),
    Comparison(
        "15b",
        "answer_store",
        "again, unchanged, less one hash of the table (10,000 rows)",
        "≤ 1 s",
    ),
    Comparison(
        "15c",
        "answer_store",
        "again, one cell changed: a million rows, by the slope to 10,000, one core",
        "≤ 120 s",
    ),
    Comparison(
        "16a",
        "answer_store",
        "a table of which 50% repeat a question, without its start (300 rows)",
        "≥ 1.9x",
    ),
    Comparison("16b", "answer_store", "the same: 90%", "≥ 8x"),
    Comparison(
        "17a",
        "corpus",
        "exact search for 64 questions against a plain product (200,000 documents)",
        "≥ 1x",
    ),
    Comparison("17b", "corpus", "the same, approximate, at a recall@50 of 0.98", "≥ 10x"),
    Comparison(
        "18a",
        "prompt_order",
        "rows that share evidence, decoder-only: evidence first against the question first",
        "≥ 3x",
    ),
    Comparison("18b", "prompt_order", "the same, each row with a picture of its own", "≥ 3x"),
    Comparison(
        "19",
        "preparation",
        "the engine's image preparation as `predict` sets it against one worker",
        "≥ 1.8x",
    ),
)
KEYS = {one.key: one for one in COMPARISONS}


@dataclass(frozen=True, slots=True)
class Line:
    """The cells of a line that are measured; `verdict` also says why there are none."""

    ratio: str = ""
    spread: str = ""
    repetitions: str = ""
    load: str = ""
    verdict: str = ""


def line_of(ratio: Ratio, load: float) -> Line:
    """What a ratio says; `load` are the cores that other programs had meanwhile."""
    comparison = KEYS[ratio.key]
    middle = _number(median(ratio.values))
    met = "met" if comparison.is_met(float(middle.replace(",", ""))) else "missed"
    ends = " to ".join(dict.fromkeys(map(_number, (min(ratio.values), max(ratio.values)))))
    return Line(
        f"{middle}{comparison.unit()}",
        ends if len(ratio.values) > 1 else "",
        str(len(ratio.values)),
        f"{load:.1f} cores",
        f"{met}: {ratio.note}" if ratio.note else met,
    )


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_table(lines: Mapping[str, Line]) -> str:
    """The table of these lines in Markdown."""
    rows = [
        f"| {one.key} | {one.compared} | {one.goal} | {_cells(lines[one.key])} |"
        for one in COMPARISONS
        if one.key in lines
    ]
    return "\n".join((*HEADER, *rows)) + "\n"


def _cells(line: Line) -> str:
    return " | ".join((line.ratio, line.spread, line.repetitions, line.load, line.verdict))


def read_table(text: str) -> dict[str, Line]:
    """The lines of the table in a text, of comparisons that there are."""
    lines = {}
    for row in text.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if cells[0] in KEYS and len(cells) == 8:
            lines[cells[0]] = Line(*cells[3:])
    return lines


def update_page(lines: Mapping[str, Line], machine: str, page: Path = PAGE) -> None:
    """Put lines into the page, and the machine under them; other lines stay."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    table = write_table(read_table(old) | dict(lines))
    page.write_text(f"{before}{BEGIN}{table}\n{machine}\n{END}{after}", encoding="utf-8")
