"""A run in n parts: which rows are whose, and where each part is written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmrag_batch.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`, from 0: a contiguous slice of the input's rows."""

    index: int
    count: int


def find_shard(text: str | None, environ: Mapping[str, str]) -> Shard | None:
    """The shard that `--shard i/n` asks for, else that of a Slurm array's task; None for all rows.

    Raises ConfigError for a shard that there cannot be.
    """
    if text is None:
        shard = _array_task(environ)
    else:
        index, _, count = text.partition("/")
        shard = Shard(int(index), int(count))
        if shard.index >= shard.count:
            raise ConfigError(f"--shard {text}: shards of {count} go from 0 to {shard.count - 1}.")
    return None if shard is None or shard.count == 1 else shard


def _array_task(environ: Mapping[str, str]) -> Shard | None:
    """The task's place in its array, as `sbatch --array` numbers it, steps included."""
    task, first, step, count = (
        environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "STEP", "COUNT")
    )
    if task is None or count is None:
        return None
    place, left = divmod(int(task) - int(first or 0), int(step or 1))
    if left or not 0 <= place < int(count):
        raise ConfigError(
            f"Task {task} has no clear place in its array of {count}; number the tasks from 0, as "
            f"in --array=0-{int(count) - 1}, or give --shard."
        )
    return Shard(place, int(count))


def shard_rows(rows: int, shard: Shard | None) -> range:
    """The numbers of a shard's rows, of `rows` in all; shards differ by at most one row."""
    if shard is None:
        return range(rows)
    first, stop = (rows * place // shard.count for place in (shard.index, shard.index + 1))
    return range(first, stop)


def shard_path(output: Path, shard: Shard | None) -> Path:
    """Where a shard of `output` goes: `out.csv` has `out.shard-0-of-4.csv`."""
    if shard is None:
        return output
    stem, suffix = _split(output.name)
    return output.with_name(f"{stem}.shard-{shard.index}-of-{shard.count}{suffix}")


def find_shards(output: Path) -> dict[int, set[int]]:
    """The shards of `output` that were begun: their indices, by how many shards there are."""
    stem, suffix = _split(output.name)
    name = re.compile(rf"{re.escape(stem)}\.shard-([0-9]+)-of-([0-9]+){re.escape(suffix)}(\..+)?")
    found: dict[int, set[int]] = {}
    for file in output.parent.iterdir() if output.parent.is_dir() else ():
        if match := name.fullmatch(file.name):
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    return found


def _split(name: str) -> tuple[str, str]:
    """The name of an output without its suffix, and the suffix, `.gz` included."""
    suffix = "".join(Path(name).suffixes[-2 if name.endswith(".gz") else -1 :])
    return name.removesuffix(suffix), suffix
