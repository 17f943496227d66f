"""Whatever is combined, an output is what one uninterrupted run on its table writes.

python -m benchmarks.sequences      # 10,000 sequences, of which these are the first
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.faults.commands import Commands, why_not
from tests.faults.double import HOOK, Script
from tests.faults.machine import play
from tests.faults.world import Entry, World, WrongError

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
SEQUENCES = 80


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as started:
        yield started


@pytest.fixture
def world(commands: Commands, tmp_path: Path) -> World:
    """A table of each kind of row, two of which ask the same."""
    world = World(commands, tmp_path)
    world.set_image("a.png", b"first")
    entry = Entry("Is it even?", ("yes", "no"), "a.png", ("a text", "a.png"), label="yes")
    world.entries = [
        entry,
        replace(entry, note='é "quoted"\nand more', id="twice"),
        replace(entry, documents=("a text", "b.png")),
        replace(entry, image="c.png"),
        replace(entry, broken=True),
        replace(entry, choices=()),
    ]
    world.write_table()
    return world


def fresh_run(world: World) -> bytes:
    """What one run with no store writes of the table as it is, in another folder."""
    folder = world.scratch / "fresh"
    folder.mkdir()
    for name in ("in.csv", *world.images):
        (folder / name).write_bytes((world.folder / name).read_bytes())
    script = Script(str(world.scratch / "of-fresh"))
    words = ("predict", "in.csv", "out.csv", "--engine", "scripted", "--top-k", "2")
    done = world.commands.run(*words, folder=folder, hook=HOOK, hook_argument=asdict(script))
    assert done.code == 3, done.output
    return (folder / "out.csv").read_bytes()


def test_j10_the_model_predicts_what_a_run_with_a_fresh_store_writes(world: World) -> None:
    assert world.predict().code == 3
    written = (world.folder / "out.csv").read_bytes()
    assert written == fresh_run(world)
    for status in (b",ok,", b",degraded,", b",error,", b"bad_choices: line 7: "):
        assert status in written


def test_j10_the_model_sees_an_answer_that_is_not_what_a_run_would_give(world: World) -> None:
    world.images["a.png"] = b"second"  # so the model says, and the file does not
    with pytest.raises(WrongError, match="wrong output"):
        world.predict()


def test_j10_the_model_sees_a_question_that_is_asked_again(world: World) -> None:
    world.predict()
    for name in ("out.csv.store", "out.csv", "out.csv.manifest.json"):
        (world.folder / name).unlink()  # which the model does not know
    with pytest.raises(WrongError, match="asked what has an answer"):
        world.predict()


def test_j10_random_sequences_never_break_a_promise(commands: Commands) -> None:
    counts: Counter[str] = Counter()
    play(commands, SEQUENCES, counts, seed=None, shrinks=False)
    assert counts["sequences"] >= SEQUENCES
    assert counts["publications compared"] >= SEQUENCES
    assert all(counts[f"kills: {kind}"] for kind in ("kill", "torn", "power"))
