"""Random sequences of all that people, schedulers and disks do to an output.

What is drawn never depends on what has happened, so that a sequence can be played again although
the moment of a kill cannot. What happened is checked by world.py after every command.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.faults.commands import Commands
from tests.faults.world import IMAGES, OUTPUTS, End, Entry, Store, World

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where folders are, if it can be: syncing costs nothing there, and a power cut is the double's."""
STEPS = 12
"""Of a sequence, at most."""


class Array(NamedTuple):
    """An array of Slurm's: MIN, MAX, STEP and its tasks."""

    first: int
    last: int
    step: int
    tasks: tuple[int, ...]

    def environs(self) -> list[dict[str, str]]:
        """The variables of each task."""
        same = {"COUNT": len(self.tasks), "MIN": self.first, "MAX": self.last, "STEP": self.step}
        tasks = [{"ID": task, **same} for task in self.tasks]
        return [{f"SLURM_ARRAY_TASK_{name}": str(task[name]) for name in task} for task in tasks]


ARRAYS = (
    Array(0, 1, 1, (0, 1)),
    Array(0, 3, 1, (0, 1, 2, 3)),
    Array(1, 3, 1, (1, 2, 3)),
    Array(0, 4, 2, (0, 2, 4)),
    Array(1, 3, 1, (1, 3)),  # of 0-3, submitted again
    Array(1, 3, 2, (1, 3)),
    Array(2, 2, 1, (2,)),
    Array(0, 3, 1, (0, 2, 3)),
)

numbers = st.integers(0, 11)
choices = st.sampled_from([(), ("yes", "no"), ("yes", "no", 'maybe, "so"'), ("ä\n", "b")])
images = st.sampled_from([None, None, None, *IMAGES])
documents = st.lists(st.sampled_from(["a text", "another", *IMAGES]), max_size=3).map(tuple)
entries = st.builds(
    Entry,
    text=st.sampled_from([f"Is {n} even?" for n in range(6)]),
    choices=choices,
    image=images,
    documents=documents,
    note=st.sampled_from(["", "plain", 'é "quoted"\nand more', "a,b\n\nc"]),
    label=st.sampled_from(["", "yes", "1"]),
    broken=st.sampled_from([False] * 7 + [True]),
)
nothing = st.just("")
deaths = st.sampled_from(["kill", "torn", "power", "full"])
ends = st.one_of(
    st.builds(End, deaths, st.integers(0, 150), nothing),
    st.builds(End, deaths, st.integers(0, 40), nothing),
    st.builds(End, deaths, st.integers(0, 12), st.sampled_from(["rename,unlink", "sync,create"])),
    st.builds(End, st.sampled_from(["asked", "stop"]), st.integers(0, 9), nothing),
    st.builds(End, st.just("time"), st.integers(0, 50), nothing),
)
perhaps = st.none() | ends
flags = st.sampled_from(
    [(), (), ("--retry-errors",), ("--retry-degraded",), ("--verify-inputs",), ("--overwrite",)]
)


class Sequences(RuleBasedStateMachine):
    """A sequence; `commands` and `counts` are shared by all of them."""

    def __init__(self, commands: Commands, counts: Counter[str]) -> None:
        super().__init__()
        self._root = Path(tempfile.mkdtemp(dir=MEMORY))
        counts["sequences"] += 1
        self.world = World(commands, self._root, counts)
        self._ids = 0

    def teardown(self) -> None:
        shutil.rmtree(self._root)

    @initialize(rows=st.lists(entries, max_size=10), there=st.sets(st.sampled_from(IMAGES)))
    def begin(self, rows: list[Entry], there: set[str]) -> None:
        for name in sorted(there):
            self.world.set_image(name, b"first")
        self._change(lambda table: table.extend(rows))

    # The table and what it names.

    def _change(self, change: Callable[[list[Entry]], Any]) -> None:
        change(self.world.entries)
        del self.world.entries[14:]
        self.world.write_table()

    @rule(rows=st.lists(entries, min_size=1, max_size=4), at=numbers, has_id=st.booleans())
    def insert(self, rows: list[Entry], at: int, has_id: bool) -> None:
        """Rows at the top, in the middle or, mostly, at the end."""
        if has_id:
            self._ids += 1
            rows[0] = replace(rows[0], id=f"r{self._ids}")
        self._change(lambda table: table.__setitem__(slice(at, at), rows))

    @rule(at=numbers, count=st.integers(1, 4))
    def remove(self, at: int, count: int) -> None:
        self._change(lambda table: table.__delitem__(slice(at, at + count)))

    @rule(at=numbers, new=entries, whole=st.booleans())
    def mend(self, at: int, new: Entry, whole: bool) -> None:
        """Change what a row asks, or only what passes through."""

        def change(table: list[Entry]) -> None:
            if table:
                old = table[at % len(table)]
                table[at % len(table)] = (
                    replace(new, id=old.id)
                    if whole
                    else replace(old, note=new.note, label=new.label, broken=new.broken)
                )

        self._change(change)

    @rule(at=numbers, to=numbers, is_move=st.booleans())
    def move(self, at: int, to: int, is_move: bool) -> None:
        """Change the order, or have two rows ask the same."""

        def change(table: list[Entry]) -> None:
            if table:
                place = at % len(table)
                entry = table.pop(place) if is_move else replace(table[place], id="")
                table.insert(to, entry)

        self._change(change)

    @rule(name=st.sampled_from(IMAGES), content=st.sampled_from([None, b"first", b"second"]))
    def image(self, name: str, content: bytes | None) -> None:
        self.world.set_image(name, content)

    @rule(name=st.sampled_from(OUTPUTS), at=st.integers(0, 400) | st.none())
    def meddle(self, name: str, at: int | None) -> None:
        """Edit an output, or lose its manifest."""
        if at is None:
            self.world.remove_manifest(name)
        else:
            self.world.edit_output(name, at)

    # Commands.

    @rule(end=ends, words=flags)
    def predict(self, end: End, words: Sequence[str]) -> None:
        self.world.predict(end=end, flags=words)

    @rule(end=ends)
    def predict_plainly(self, end: End) -> None:
        self.world.predict(end=end)

    @rule(words=flags)
    def finish(self, words: Sequence[str]) -> None:
        """With the settings that the answers have."""
        self.world.top_k = self.world.stores.get("out.csv.store", Store()).top_k or 2
        self.world.predict(flags=["--overwrite", *words])

    @rule(limit=st.integers(1, 9), end=perhaps)
    def predict_some(self, limit: int, end: End | None) -> None:
        self.world.predict(limit=limit, end=end)

    @rule(name=st.sampled_from(OUTPUTS[1:]), end=perhaps, words=flags)
    def predict_other(self, name: str, end: End | None, words: Sequence[str]) -> None:
        self.world.predict(name, end=end, flags=words)

    @rule()
    def abstain(self) -> None:
        """From now on, or not any more; which costs no row."""
        self.world.withholds = not self.world.withholds

    @rule(name=st.sampled_from(OUTPUTS))
    def refuse(self, name: str) -> None:
        """Other settings."""
        self.world.predict(name, top_k=5 - self.world.top_k)

    @rule(name=st.sampled_from(OUTPUTS), end=perhaps, anew=st.booleans())
    def afresh(self, name: str, end: End | None, anew: bool) -> None:
        self.world.top_k = 5 - self.world.top_k if anew else self.world.top_k
        self.world.predict(name, flags=["--fresh"], end=end)

    @rule(index=st.integers(0, 3), count=st.integers(1, 4), end=perhaps, words=flags)
    def shard(self, index: int, count: int, end: End | None, words: Sequence[str]) -> None:
        self.world.shard(index % count, count, end=end, flags=words)

    @rule(
        array=st.sampled_from(ARRAYS),
        endings=st.lists(perhaps, max_size=4),
        words=flags | st.just(("--fresh",)),
    )
    def array(self, array: Array, endings: list[End | None], words: Sequence[str]) -> None:
        """The tasks of an array one after the other, the first of which may be ended."""
        self.world.array(array.environs(), _as_many(endings, array), flags=words)

    @rule(array=st.sampled_from(ARRAYS), endings=st.lists(perhaps, max_size=2))
    def array_at_once(self, array: Array, endings: list[End | None]) -> None:
        """The same side by side; the power goes off for all of a machine, which no task can do."""
        alive = [None if end is not None and end.kind == "power" else end for end in endings]
        self.world.array_at_once(array.environs(), _as_many(alive, array))

    @rule(end=perhaps, words=st.sampled_from([(), ("--overwrite",)]))
    def merge(self, end: End | None, words: Sequence[str]) -> None:
        self.world.merge(end=end, flags=words)

    @rule(writes=st.booleans())
    def status(self, writes: bool) -> None:
        if writes:
            self.world.write_so_far()
        else:
            self.world.status()


def _as_many(endings: Sequence[End | None], array: Array) -> list[End | None]:
    return [*endings, *[None] * len(array.tasks)][: len(array.tasks)]


def play(
    commands: Commands, count: int, counts: Counter[str], *, seed: int | None, shrinks: bool
) -> None:
    """Play so many sequences, always the same without a `seed`. Raises what is wrong with one that
    breaks a promise: the first, or with `shrinks` (which may take minutes) a short one."""
    options = settings(
        max_examples=count,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=seed is None,
        database=None,
        suppress_health_check=list(HealthCheck),  # which is about speed, or lists that are empty
        print_blob=False,
        phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
        report_multiple_bugs=False,
    )
    if seed is not None:
        Sequences._hypothesis_internal_use_seed = seed
    machine = partial(Sequences, commands, counts)
    run_state_machine_as_test(machine, settings=options)  # type: ignore[arg-type]  # its docs
