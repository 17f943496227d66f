"""Random damage to every file that a run keeps, and what the same command does then.

Whatever was damaged, it ends with a documented exit code and a message that says what to do next,
and it never writes a wrong output.
"""

import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from mmrag_batch.run.store import COMMIT_ROWS
from tests.faults.commands import Commands, Done, Fault
from tests.faults.damage import DAMAGES, damaged
from tests.faults.double import HOOK, Script
from tests.faults.world import Entry, World, WrongError

ROWS = 300
SHARDS = 3
KINDS = (*DAMAGES, "remove")
PREDICT = ("predict", "in.csv", "out.csv", "--engine", "scripted", "--top-k", "2")
MERGE = ("merge", "out.csv")
CODES = {
    "predict": frozenset((0, 3, 70, 73, 78)),
    "merge": frozenset((0, 3, 4, 66, 70, 73, 78)),
    "status": frozenset((0, 66, 70, 73, 78)),
}
ADVICE = re.compile(r"\b(?:[Rr]un|[Aa]dd|[Mm]ove|[Mm]end|[Rr]emove|[Cc]hoose)\b.*[.]$", re.M)


class State(NamedTuple):
    """A folder as a command left it, or one that died; `files` are those that are damaged, by what
    they are, and the command is what comes next."""

    folder: Path
    files: dict[str, str]
    command: tuple[str, ...]
    expected: bytes
    """The output of a run that nothing happened to."""
    left: int = 0
    """Questions that the command would ask without a damage."""


class Outcome(NamedTuple):
    """What a command did after a damage."""

    file: str
    damage: str
    code: int
    status: int
    asked: int
    """More than without it."""


def damage(kind: str, path: Path, other: Path | None, chance: random.Random) -> None:
    """Damage a file, or remove it."""
    new = None if other is None else other.read_bytes()
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(damaged(kind, path.read_bytes(), new, chance))


class Damages:
    """States of an output, made once, to try damages on copies of."""

    def __init__(self, commands: Commands, root: Path) -> None:
        self._commands = commands
        self._root = root
        self._log = root / "asked"
        self._others: dict[str, Path] = {}
        self.states = [state for state in self._make("first", 0) if state.files]
        for state in self._make("second", ROWS // 2):
            for name, file in state.files.items():
                self._others.setdefault(name, state.folder / file)

    def _make(self, name: str, first: int) -> list[State]:
        """An output that is complete, whose table has grown, that died in a commit or before its
        manifest; and shards."""
        world = World(self._commands, self._root / name)
        world.set_image("a.png", b"first")
        world.entries = [_entry(number) for number in range(first, first + ROWS)]
        world.write_table()
        begun = self._copy(world.folder, f"{name}-begun")
        shards = self._copy(world.folder, f"{name}-shards")
        self._run(PREDICT, world.folder)
        at_rest = {"out.csv": "out.csv", "manifest": "out.csv.manifest.json"}
        stores = {"store": "out.csv.store"}
        whole = (world.folder / "out.csv").read_bytes()
        complete = State(world.folder, at_rest | stores, PREDICT, whole)
        grown_folder = self._copy(world.folder, f"{name}-grown")
        world.entries += [_entry(number) for number in range(1000, 1010)]
        world.folder = grown_folder
        world.write_table()
        left = self._try_left(grown_folder)
        after = self._root / f"{grown_folder.name}-left"
        grown_whole = (after / "out.csv").read_bytes()
        grown = State(grown_folder, at_rest | stores, PREDICT, grown_whole, left)
        hot = {"hot store": "out.csv.store", "journal": "out.csv.store-journal"}
        killed = self._kill(begun, PREDICT, "write out.csv.store", 0.7)
        left = self._try_left(killed)
        dead = State(killed, hot | {"lock": "out.csv.lock"}, PREDICT, whole, left)
        renamed = self._kill(begun, PREDICT, "rename out.csv.manifest.json", 0.0)
        published = State(renamed, {"out.csv, no manifest": "out.csv", **stores}, PREDICT, whole)
        for index in range(SHARDS):
            self._run((*PREDICT, "--shard", f"{index}/{SHARDS}"), shards)
        apart = {
            f"shard store {index}": f"out.csv.shards/{index}-of-{SHARDS}.store"
            for index in range(SHARDS)
        }
        merging = self._kill(shards, MERGE, "write out.csv.store", 0.5)
        merged = State(merging, hot | {"lock": "out.csv.lock"} | apart, MERGE, whole)
        return [complete, grown, dead, published, State(shards, apart, MERGE, whole), merged]

    def _copy(self, folder: Path, name: str) -> Path:
        target = self._root / name
        shutil.copytree(folder, target)
        return target

    def _try_left(self, folder: Path) -> int:
        self._run(PREDICT, self._copy(folder, f"{folder.name}-left"))
        return self._asked()

    def _kill(self, folder: Path, command: Sequence[str], operation: str, share: float) -> Path:
        """A copy of a folder in which a command died before an operation, which it did so far
        that share of the times that it would have."""
        name = f"{folder.name}-{operation.replace(' ', '-')}"
        whole = self._copy(folder, f"{name}-whole")
        operations = self._run(command, whole, log=True).operations
        places = [at for at, word in enumerate(operations) if word == operation]
        killed = self._copy(folder, name)
        self._run(command, killed, Fault(places[int(share * len(places))]))
        return killed

    def _run(
        self,
        command: Sequence[str],
        folder: Path,
        fault: Fault | None = None,
        *,
        log: bool = False,
    ) -> Done:
        self._log.write_text("")
        script = Script(str(self._log), commit_rows=COMMIT_ROWS)
        return self._commands.run(
            *command, folder=folder, fault=fault, hook=HOOK, hook_argument=asdict(script), log=log
        )

    def _asked(self) -> int:
        return len(self._log.read_text().splitlines())

    def try_one(self, seed: int) -> Outcome:
        """Damage one file of one state, and run the command that comes next."""
        chance = random.Random(seed)
        state = chance.choice(self.states)
        name = chance.choice(list(state.files))
        kind = chance.choice(KINDS)
        folder = self._copy(state.folder, "damaged")
        try:
            path = folder / state.files[name]
            damage(kind, path, self._others.get(name), chance)
            return self._judge(state, folder, path, name, kind, seed)
        finally:
            shutil.rmtree(folder)

    def _follow(
        self, run: Callable[[Sequence[str]], Done], words: Sequence[str], path: Path
    ) -> Done:
        """Run the same command again, and do what messages say, as somebody would."""
        for _ in range(6):
            done = run(words)
            said = done.output.rpartition("mmrag-batch: ")[2]
            if done.code in (0, 3):
                return done
            if done.code in (4, 66):
                for index in range(SHARDS):
                    self._follow(run, (*PREDICT, "--shard", f"{index}/{SHARDS}"), path)
            elif "--overwrite" in said:
                words = (*words, "--overwrite")
            elif "--fresh" in said and words[0] == "predict":
                words = (*words, "--fresh")
            elif "--fresh" in said:
                self._follow(run, (*PREDICT, "--fresh"), path)
            elif "Move" in said or "Remove" in said:
                path.unlink(missing_ok=True)
        return done

    def _judge(
        self, state: State, folder: Path, path: Path, name: str, kind: str, seed: int
    ) -> Outcome:
        output, command = folder / "out.csv", state.command

        def bytes_now() -> bytes | None:
            return output.read_bytes() if output.exists() else None

        def check(holds: bool, what: str, done: Done) -> None:
            if not holds:
                raise WrongError(
                    f"seed {seed}: {kind} of {name}, then {command[0]}: {what}\n"
                    f"{done.code}: {done.output}"
                )

        def run(words: Sequence[str]) -> Done:
            before = bytes_now()
            done = self._run(words, folder)
            check("Traceback" not in done.output, "a traceback", done)
            check(done.code in CODES[words[0]], "no documented exit code", done)
            is_told = bool(ADVICE.search(done.output.rpartition("mmrag-batch: ")[2]))
            check(done.code == 0 or is_told, "it does not say what to do", done)
            if words[0] != "status" and "--shard" not in words and done.code in (0, 3):
                check(bytes_now() == state.expected, "a wrong output", done)
            else:
                check(bytes_now() == before, "the output was touched", done)
            return done

        done = run(command)
        asked = self._asked() - state.left
        status = run(("status", "out.csv"))
        last = self._follow(run, command, path)
        check(last.code in (0, 3), "what it said to do did not help", last)
        return Outcome(name, kind, done.code, status.code, asked)


def _entry(number: int) -> Entry:
    return Entry(
        f"Is {number} even?",
        choices=("yes", "no") if number % 3 else (),
        image="a.png" if number % 5 == 0 else None,
        documents=("a text", f"{number}") if number % 2 else (),
        note='é "quoted"\nand more' if number % 7 == 0 else "",
    )
