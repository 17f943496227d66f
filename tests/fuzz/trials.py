"""Random tables and images through the code that reads them, and whether that keeps its promise.

A table is read or refused with an error that says so, a row or an image is answered or an error of
that row. A traceback, a row that is lost and an exit code for no reason are wrong.
"""

import csv
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import NamedTuple

import pyarrow.parquet as pq
from typer.testing import CliRunner

from mmrag_batch.cli.app import app
from mmrag_batch.errors import InputError, MmragError, RowError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.table.check import check_table
from mmrag_batch.table.rows import scan
from tests.fuzz.images import KINDS, damage_image, make_image
from tests.fuzz.tables import SUFFIXES, write_table

csv.field_size_limit(64 * 2**20)
POOL = 40
"""Images beside a table."""
STATUSES = frozenset({"ok", "degraded", "error"})
OPTIONS = ("--engine", "scripted", "--device", "cpu", "--quiet")


class WrongError(Exception):
    """A promise is broken; the message says how to see it again."""


class TableOutcome(NamedTuple):
    """What became of a table."""

    kind: str
    code: int
    """0, or the exit code of what it was refused with."""
    rows: int
    seconds: float
    """Of a processor, to look at it."""
    statuses: Counter[str]
    """Of the rows of its output, if it was sent through `predict`."""


class ImageOutcome(NamedTuple):
    """What became of an image."""

    kind: str
    code: str
    """Of its row error; empty where it can be shown."""
    seconds: float


class Trials:
    """Tables and images in a folder, each made from a number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._images = folder / "images"
        self._images.mkdir()
        chance = Random(0)
        self._names = [f"images/{number}" for number in range(POOL)]
        for name in self._names:
            (folder / name).write_bytes(_image(chance)[1])

    def try_table(self, seed: int, *, predicts: bool) -> TableOutcome:
        """Make a table, look at it as `validate` does, and have `predict` answer it if so asked.

        Raises WrongError.
        """
        chance = Random(seed)
        path = write_table(self._folder, chance, self._names)
        output = self._folder / f"out{chance.choice(SUFFIXES).replace('ndjson', 'jsonl')}"
        try:
            begun = process_time()
            code, rows = self._check(path)
            seconds = process_time() - begun
            statuses = _predict(path, output, code, rows) if predicts else Counter[str]()
            return TableOutcome("".join(path.suffixes), code, rows, seconds, statuses)
        except Exception as error:
            raise WrongError(f"table {seed}: {type(error).__name__}: {error}") from error
        finally:
            path.unlink()

    def _check(self, path: Path) -> tuple[int, int]:
        try:
            rows = sum(1 for _ in scan(path))
        except MmragError as error:
            _expect(isinstance(error, InputError), repr(error))
            rows = 0
        try:
            _, findings = check_table(path, ImageLoader(self._folder))
            for finding in findings:
                _expect(bool(finding.problem.code), repr(finding))
        except MmragError as error:
            _expect(isinstance(error, InputError) and len(str(error)) < 9_999, repr(error))
            return int(error.exit_code), rows
        return 0, rows

    def try_images(self, seed: int, count: int) -> list[ImageOutcome]:
        """Make images, show each of them alone, and then all of them in a table to `predict`.

        Raises WrongError.
        """
        folder = self._folder / "shown"
        folder.mkdir()
        outcomes = []
        try:
            for number in range(count):
                kind, data = _image(Random(seed + number))
                (folder / str(number)).write_bytes(data)
                try:
                    outcomes.append(_show(folder, str(number), kind))
                except Exception as error:
                    what = f"image {seed + number} ({kind})"
                    raise WrongError(f"{what}: {type(error).__name__}: {error}") from error
            try:
                _predict_images(folder, count)
            except Exception as error:
                what = f"images {seed} to {seed + count}"
                raise WrongError(f"{what}: {type(error).__name__}: {error}") from error
        finally:
            shutil.rmtree(folder)
        return outcomes


def _image(chance: Random) -> tuple[str, bytes]:
    kind, other = chance.choice(KINDS), chance.choice(KINDS)
    data = make_image(kind, chance)
    if chance.random() < 0.7:
        data = damage_image(data, make_image(other, chance), chance)
    return kind, data


def _show(folder: Path, name: str, kind: str) -> ImageOutcome:
    images, code, begun = ImageLoader(folder), "", perf_counter()
    try:
        images.digest(name)
        for source in [page.source for page in images.pages(name)][:1] or [name]:
            picture = images.load(source)
            _expect(picture.mode == "RGB" and min(picture.size) > 0, repr(picture))
    except RowError as error:
        code = error.code
        _expect(bool(code) and len(str(error)) < 999, repr(error))
    return ImageOutcome(kind, code, perf_counter() - begun)


def _predict_images(folder: Path, count: int) -> None:
    path = folder / "in.csv"
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["question_text", "question_image", "documents"])
        for number in range(count):
            table.writerow(
                ["What?", f"./{number}", json.dumps([{"image": f"{count - 1 - number}"}])]
            )
    _predict(path, folder / "out.csv", 0, count)


def _predict(path: Path, output: Path, code: int, rows: int) -> Counter[str]:
    """How many rows of the output have which status."""
    try:
        done = CliRunner().invoke(app, ["predict", str(path), str(output), *OPTIONS])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        said = done.output[-2000:]
        _expect("Traceback" not in done.output, said)
        _expect(done.exit_code in ((code,) if code else (0, 3)), f"{done.exit_code}: {said}")
        if done.exit_code not in (0, 3):
            _expect(not output.exists(), f"{done.exit_code}, and there is an output")
            return Counter()
        statuses = Counter(_read_statuses(output))
        _expect(statuses.total() == rows, f"{rows} rows in, {statuses.total()} out")
        _expect(statuses.keys() <= STATUSES, repr(statuses))
        _expect((done.exit_code == 3) == (statuses["error"] > 0), f"{done.exit_code}, {statuses}")
        return statuses
    finally:
        for file in output.parent.glob(f"{output.name}*"):
            file.unlink()


def _read_statuses(output: Path) -> Iterator[str]:
    """The column, without the code that is tried."""
    if output.suffix == ".parquet":
        yield from pq.read_table(output, columns=["status"])["status"].to_pylist()
        return
    opener = gzip.open if output.suffix == ".gz" else open
    with opener(output, "rt", encoding="utf-8", newline="") as stream:
        if ".jsonl" in output.suffixes:
            yield from (json.loads(line)["status"] for line in stream)
        else:
            delimiter = "\t" if ".tsv" in output.suffixes else ","
            yield from (row["status"] for row in csv.DictReader(stream, delimiter=delimiter))


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
