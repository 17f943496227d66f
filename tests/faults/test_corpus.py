"""A corpus, when `index` dies at any operation of the disk: while it makes one, while it adds,
changes and removes documents, while it writes segments anew."""

import csv
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from mmrag_batch.retrieval.corpus import Corpus
from tests.faults.commands import Commands, Done, Fault, Kind
from tests.faults.harness import each, telling

Documents = Mapping[str, str]
FIRST = {f"d{number}": f"Thing {number} is red." for number in range(14)}
SECOND = {**dict(list(FIRST.items())[5:]), "d9": "Thing 9 is blue.", "new": "Thing new is green."}
"""So much is changed that segments are written anew."""


def write(folder: Path, documents: Documents) -> None:
    with (folder / "docs.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "text"])
        table.writerows(documents.items())


def index(
    commands: Commands, folder: Path, fault: Fault | None = None, *, log: bool = False
) -> Done:
    """Index docs.csv, with segments of four documents; embeddings are kept elsewhere."""
    return commands.run(
        *("index", "docs.csv", "corpus", "--embedding-cache", "../embeddings"),
        folder=folder,
        fault=fault,
        hook="tests.faults.hooks:make_small_segments",
        hook_argument=4,
        log=log,
    )


def held(folder: Path) -> Documents:
    """What the corpus holds; MissingError where there is none yet."""
    corpus = Corpus(folder / "corpus")
    records = [
        segment.record(row)
        for segment in corpus._segments
        for row in range(segment.spec.rows)
        if segment.alive[row]
    ]
    assert len(records) == len(corpus)
    return {record["id"]: record["text"] for record in records}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torn", "power"])
def test_a_death_of_index_at_every_operation_of_the_disk_is_made_good(
    commands: Commands, tmp_path: Path, kind: Kind
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    died = sum(
        die_everywhere(commands, folder, before, after, kind)
        for before, after in ((None, FIRST), (FIRST, SECOND))
    )
    assert died > (15 if kind == "torn" else 60)


def die_everywhere(
    commands: Commands, folder: Path, before: Documents | None, after: Documents, kind: Kind
) -> int:
    """Die at each operation that can tell something, and go on; how often that was. The folder has
    `before`, and then `after`."""
    write(folder, after)
    only = "write" if kind == "torn" else ""
    place = shutil.copytree(folder, folder.with_name("log"))
    done = index(commands, place, log=True)
    assert done.code == 0, done.output
    shutil.rmtree(place)
    counted = [what for what in done.operations if what.split()[0] == only or not only]

    def die(at: int) -> None:
        place = shutil.copytree(folder, folder.with_name(str(at)))
        done = index(commands, place, Fault(at, kind, only))
        assert done.code == -signal.SIGKILL, done.output
        if before is not None or (place / "corpus" / "corpus.json").exists():
            assert held(place) in (before, after), counted[at]
        done = index(commands, place)
        assert done.code == 0, (counted[at], done.output)
        assert held(place) == after, counted[at]
        shutil.rmtree(place)

    deaths = each(die, telling([no_names(what) for what in counted]))
    assert index(commands, folder).code == 0
    assert held(folder) == after
    return deaths


def no_names(operation: str) -> str:
    """The operation without the name of a segment, which is another in each run."""
    what, _, name = operation.partition(" ")
    return f"{what} {name.rpartition('.')[2] if len(name) > 32 else name}"
