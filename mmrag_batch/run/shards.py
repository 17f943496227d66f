"""A run in n parts: which rows are whose, and where each part keeps its answers.

    out.csv.shards/0-of-4.store    what task 0 of 4 has answered; merged into out.csv.store
    out.csv.shards/lock            held for a moment by who says which rows it is at

A row belongs to a shard by its number, and is asked by it unless any store has its answer: so
shards of any number and age go together.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmrag_batch.errors import ConfigError, MmragError, OutputError
from mmrag_batch.run.files import Paths, sync_folder
from mmrag_batch.run.lock import take_turns
from mmrag_batch.run.store import AnswerStore

STORE = re.compile(r"([0-9]+)-of-([0-9]+)\.store")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, from 0: a contiguous slice of the input's rows.

    In a Slurm array, task `first + step * index` stands for it.
    """

    index: int
    count: int
    first: int = field(default=0, compare=False)
    step: int = field(default=1, compare=False)

    def of_task(self, task: int) -> "Shard | None":
        """The part that a task of the same array stands for, if it has such a task."""
        index, rest = divmod(task - self.first, self.step)
        is_one = rest == 0 and 0 <= index < self.count
        return Shard(index, self.count, self.first, self.step) if is_one else None


def find_shard(text: str | None, environ: Mapping[str, str], output: Path) -> Shard | None:
    """The shard that `--shard i/n` asks for, else that of a Slurm array's task; None for all rows.

    Raises ConfigError for a shard that there cannot be.
    """
    if text is None:
        return _array_task(environ, output)
    index, _, count = text.partition("/")
    shard = Shard(int(index), int(count))
    if shard.index >= shard.count:
        raise ConfigError(f"--shard {text}: shards of {count} go from 0 to {shard.count - 1}.")
    return shard


def _array_task(environ: Mapping[str, str], output: Path) -> Shard | None:
    """The task's place in its array, as `sbatch --array` numbers it, steps included.

    Where the numbers have no even step, as when some tasks of an array are submitted again, each
    stands for the part that it stood for: Slurm does not tell a task which numbers there are.
    """
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    known = [environ.get(f"SLURM_ARRAY_TASK_{name}") for name in names]
    if known[0] is None or known[1] is None:
        return None
    task, count = int(known[0]), int(known[1])
    first, last, step = (int(text or default) for text, default in zip(known[2:], (0, task, 1)))
    if step > 0 and first + step * (count - 1) == last and (task - first) % step == 0:
        return Shard((task - first) // step, count, first, step)
    for before in _begun(output):
        if before.of_task(first) and before.of_task(last) and (shard := before.of_task(task)):
            return shard
    return Shard(task, max(task, last) + 1)


def _begun(output: Path) -> list[Shard]:
    """The shards of an output that were begun, each with the numbers of its array's tasks; those
    that were begun last come first."""
    begun: list[tuple[float, int, Shard]] = []
    for shard, paths in find_shards(output):
        with suppress(MmragError, TypeError), AnswerStore(paths.store) as store:
            first, step = (store.read_note("job") or {}).get("tasks") or (0, 1)
            times = [start.time for start in store.starts()]
            before = Shard(shard.index, shard.count, first, step)
            begun.append((max(times, default=0.0), shard.count, before))
    return [shard for _, _, shard in sorted(begun, key=lambda item: item[:2], reverse=True)]


def shard_rows(rows: int, shard: Shard) -> range:
    """The numbers of a shard's rows, of `rows` in all; shards differ by at most one row."""
    first, stop = (rows * place // shard.count for place in (shard.index, shard.index + 1))
    return range(first, stop)


def shard_paths(output: Path, shard: Shard) -> Paths:
    """Where a shard of an output keeps its answers and its lock."""
    name = Paths.of(output).shards / f"{shard.index}-of-{shard.count}"
    return Paths.of(name)


def open_folder(output: Path) -> None:
    """Make the folder of an output's shards. Raises OutputError if something else is there."""
    folder = Paths.of(output).shards
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is no folder. Move it away, or choose another output.")
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)  # else a power cut takes it, and all that was committed in it


@contextmanager
def claiming(output: Path) -> Iterator[None]:
    """For who says which rows it is at and looks who else is at them: of two that start together,
    one sees the other, and they do not leave rows to each other."""
    folder = Paths.of(output).shards
    with take_turns(folder / "lock") if folder.is_dir() else nullcontext():
        yield


def find_shards(output: Path) -> Iterator[tuple[Shard, Paths]]:
    """The shards of an output that were begun, of any number, in order."""
    folder = Paths.of(output).shards
    if folder.is_symlink() or not folder.is_dir():
        return
    names = (STORE.fullmatch(file.name) for file in folder.iterdir())
    for count, index in sorted((int(name[2]), int(name[1])) for name in names if name):
        shard = Shard(index, count)
        yield shard, shard_paths(output, shard)
