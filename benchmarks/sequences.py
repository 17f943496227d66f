"""Whether the answer store keeps its promise, whatever is combined and whatever is damaged.

    python -m benchmarks.sequences [--sequences 10000] [--damages 5000] [--jobs 2] [--seed 0]

Random sequences of commands, kills, signals, full disks and changes to the table, its images and
its outputs: after every command the output is compared with what one uninterrupted run would write
(tests/faults/world.py says what else is checked). Then damages to single files of outputs of 300
rows. The engine is a double; all that reads, keeps and writes is real. Prints tables in Markdown,
and what led to each thing that was wrong.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Annotated, TypeVar

import typer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.faults.commands import Commands
from tests.faults.damage import FEW_BYTES
from tests.faults.damages import Damages, Outcome
from tests.faults.machine import MEMORY, play
from tests.faults.world import WrongError

T = TypeVar("T")
BATCH = 250
"""What one process does before it begins with fresh processes for its commands."""


def play_batch(seed: int, count: int) -> tuple[Counter[str], str]:
    """Play sequences: what they came to, and what was wrong."""
    counts: Counter[str] = Counter()
    try:
        with Commands() as commands:
            play(commands, count, counts, seed=seed, shrinks=False)
    except Exception as error:  # of any kind, as hypothesis wraps what it finds
        return counts, tell_error(error)
    return counts, ""


def tell_error(error: BaseException) -> str:
    """An error with all that is known of it: a sequence that cannot be repeated is in a group."""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    notes = getattr(error, "__notes__", [])
    return "\n".join([repr(error.__class__), str(error), *notes, *map(tell_error, inner)])


def damage_batch(seed: int, count: int) -> tuple[list[Outcome], list[str]]:
    """Damage files: what came of it, and what was wrong."""
    outcomes, wrong = [], []
    with Commands() as commands, tempfile.TemporaryDirectory(dir=MEMORY) as root:
        damages = Damages(commands, Path(root))
        for one in range(seed, seed + count):
            try:
                outcomes.append(damages.try_one(one))
            except WrongError as error:
                wrong.append(str(error))
    return outcomes, wrong


def batches(count: int, seed: int) -> Iterator[tuple[int, int]]:
    """The seed and the size of each batch."""
    for start in range(0, count, BATCH):
        yield seed + start, min(BATCH, count - start)


def tell_sequences(counts: Counter[str], minutes: float) -> Iterator[str]:
    """A table of what the sequences came to."""
    yield "| sequences | |\n|---|---|"
    order = ("sequences", "commands", "publications compared", "questions asked")
    kinds = sorted(name for name in counts if name.startswith(("kills: ", "ended: ")))
    for name in (*order, *kinds, "wrong", "tracebacks"):
        yield f"| {name} | {counts[name]:,} |"
    yield f"| minutes | {minutes:.1f} |"


def tell_damages(outcomes: Iterable[Outcome], minutes: float) -> Iterator[str]:
    """A table of exit codes by what was damaged, and of what was asked again."""
    by_file: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_file.setdefault(outcome.file, []).append(outcome)
    yield "| damaged | times | exit codes | of `status` | asked again, few bytes: mean, most |"
    yield "|---|---|---|---|---|"
    for name, found in sorted(by_file.items()):
        mended = [one for one in found if one.code in (0, 3)]
        few = [one.asked for one in mended if one.damage in FEW_BYTES]
        shown = f"{mean(few):.1f}, {max(few)}" if few else ""
        codes, others = (
            ", ".join(f"{code}: {times}" for code, times in sorted(Counter(column).items()))
            for column in ([one.code for one in found], [one.status for one in found])
        )
        yield f"| {name} | {len(found):,} | {codes} | {others} | {shown} |"
    yield f"\n{minutes:.1f} minutes."


def main(
    sequences: Annotated[int, typer.Option(help="Random sequences.")] = 10_000,
    damages: Annotated[int, typer.Option(help="Random damages.")] = 5_000,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    seed: Annotated[int, typer.Option(help="Other ones for another number.")] = 0,
) -> None:
    """Play sequences, damage files, and print what came of it."""
    wrong: list[str] = []
    with ProcessPoolExecutor(jobs) as pool:

        def run(step: Callable[[int, int], T], count: int) -> tuple[list[T], float]:
            started = time.monotonic()
            parts = list(batches(count, seed))
            played = pool.map(step, *zip(*parts)) if parts else ()
            results = list(tqdm(played, total=len(parts), unit="batch"))
            return results, (time.monotonic() - started) / 60

        played, minutes = run(play_batch, sequences)
        if played:
            wrong += [text for _, text in played if text]
            total = sum((counts for counts, _ in played), Counter[str]())
            typer.echo("\n".join(tell_sequences(total, minutes)) + "\n")
        damaged, minutes = run(damage_batch, damages)
        if damaged:
            wrong += [text for _, texts in damaged for text in texts]
            outcomes = [outcome for found, _ in damaged for outcome in found]
            typer.echo("\n".join(tell_damages(outcomes, minutes)))
    if wrong:
        typer.echo(f"\n{len(wrong)} batches or damages went wrong:")
        typer.echo("\n\n".join(wrong))
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
