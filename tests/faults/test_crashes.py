"""Group A: a run that dies at any point of its way is completed by the same command, byte by byte.

Death comes at each operation of the disk in turn, SQLite's included, as SQLite tests itself: before
the operation, in the middle of it, and with the loss of all that was not synced. Of operations that
are alike and follow each other it is the first and the last.
"""

import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mmrag_batch.generation.engines.scripted import WINDOW
from mmrag_batch.run.store import COMMIT_ROWS
from tests.faults.commands import Commands, Fault
from tests.faults.harness import (
    DONE,
    QUICK,
    ask,
    asked,
    begin,
    call,
    committed,
    each,
    identity,
    leave,
    manifest,
    names,
    predict,
    read_rows,
    run,
    telling,
    wait_for,
    words,
    write_table,
)

FEW = {**QUICK, "commit_rows": 16}
"""With these, 50 rows are as many commits as 200."""
COMMITS = {50: {0, 16, 32, 48, 50}, 200: {0, 64, 128, 192, 200}}
"""How many answers may be committed, whenever it is looked."""


def changes(rows: int) -> dict[str, object]:
    return {**(FEW if rows == 50 else QUICK)}


def operations(commands: Commands, folder: Path, rows: int = 200) -> tuple[str, ...]:
    """Everything that a whole run does to the disk; the folder is as it was then."""
    done = run(commands, folder, "--quiet", log=True, changes=changes(rows))
    assert done.code == 0, done.output
    for file in folder.iterdir():
        if file.name != "in.csv":
            file.unlink()
    return done.operations


def make_good(commands: Commands, folder: Path, rows: int, expected: bytes) -> None:
    """The same command completes what another left, and asks nothing that has an answer."""
    if (folder / "out.csv").exists():
        assert (folder / "out.csv").read_bytes() == expected
    before = committed(folder)
    assert before in COMMITS[rows]
    done = run(commands, folder, "--quiet", changes=changes(rows))
    assert (done.code, done.output) == (0, "")
    assert (folder / "out.csv").read_bytes() == expected
    assert names(folder) == DONE
    assert len(asked(folder)) == rows - before


def die_everywhere(
    commands: Commands, folder: Path, rows: int, expected: bytes, fault: Fault
) -> None:
    """Die as `fault` says, at each operation that it counts and that can tell something; go on."""
    write_table(folder / "in.csv", rows)
    log = operations(commands, folder, rows)
    counted = [what for what in log if what.split()[0] in fault.only.split(",") or not fault.only]
    assert len(counted) > 100

    def die(at: int) -> None:
        place = folder.parent / f"{fault.kind}-{at}"
        shutil.copytree(folder, place)
        mine = Fault(at, fault.kind, fault.only)
        died = run(commands, place, "--quiet", fault=mine, changes=changes(rows))
        assert (died.code, died.output) == (-signal.SIGKILL, ""), (at, counted[at])
        try:
            make_good(commands, place, rows, expected)
        except AssertionError as error:
            raise AssertionError(f"{fault.kind} at {at}, {counted[at]}: {error}") from error
        shutil.rmtree(place)

    assert each(die, telling(counted)) > 40


def test_a03_a_write_that_is_torn_is_made_good_whichever_it_is(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    die_everywhere(commands, folder, 50, expected[50], Fault(0, "torn", only="write"))


def test_a04_a_power_cut_at_every_operation_of_the_disk_is_made_good(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    die_everywhere(commands, folder, 50, expected[50], Fault(0, "power"))


def test_a06_a_kill_at_every_operation_of_the_disk_is_made_good(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    die_everywhere(commands, folder, 50, expected[50], Fault(0, "kill"))


def test_a01_a_death_before_the_lock_leaves_nothing(commands: Commands, folder: Path) -> None:
    died = run(commands, folder, fault=Fault(0), log=True)
    assert (died.code, died.operations) == (-signal.SIGKILL, ("create out.csv.lock",))
    assert names(folder) == {"in.csv"}
    assert predict(folder, "--quiet") == 0


def test_a02_a_lock_is_free_when_its_holder_is_dead(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    log = operations(commands, folder)
    died = run(commands, folder, fault=Fault(log.index("create out.csv.store")))
    assert died.code == -signal.SIGKILL
    assert names(folder) == {"in.csv", "out.csv.lock"}
    make_good(commands, folder, 200, expected[200])


def test_a05_rows_whose_commit_is_on_disk_are_not_answered_again(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    """Killed when the engine has answered more than is committed: those since are asked again."""
    for rows in (64, 128, 192):
        leave(commands, folder, rows, stuck_at=rows + 5)
        assert {*range(rows, rows + 5)} <= {*asked(folder)}
    code, numbers = ask(folder, "--quiet")
    assert (code, sorted(numbers)) == (0, list(range(192, 200)))
    assert (folder / "out.csv").read_bytes() == expected[200]


def refuse(*_: object) -> None:
    raise AssertionError("a model is loaded")


def test_a07_a_death_before_the_manifest_costs_only_the_manifest(
    commands: Commands, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = operations(commands, folder)
    run(commands, folder, fault=Fault(log.index("rename out.csv") + 1))
    before = identity(folder / "out.csv")
    assert not (folder / "out.csv.manifest.json").exists()
    monkeypatch.setattr("mmrag_batch.run.predict.find_stages", refuse)
    assert predict(folder, "--quiet") == 0
    assert identity(folder / "out.csv") == before
    assert manifest(folder)["rows"] == {"ok": 200, "degraded": 0, "error": 0}
    assert names(folder) == DONE


@pytest.mark.parametrize("seed", range(2))
def test_a08_kills_at_random_moments_lose_nothing_and_double_nothing(
    commands: Commands, folder: Path, expected: dict[int, bytes], seed: int
) -> None:
    write_table(folder / "in.csv", 600)
    moments = random.Random(seed)
    kills, twice = 0, 0
    while not (folder / "out.csv.manifest.json").exists():
        before = committed(folder)
        fault = Fault(moments.randrange(30, 160), moments.choice(["kill", "torn", "power"]))
        code = run(commands, folder, "--quiet", fault=fault, changes=QUICK).code
        assert code in (0, -signal.SIGKILL)
        assert committed(folder) >= before
        assert len(set(asked(folder))) == len(asked(folder))
        twice += len(asked(folder)) - (committed(folder) - before)
        kills += code != 0
        assert kills < 50
    assert kills > 3
    assert twice <= kills * (COMMIT_ROWS + WINDOW)
    assert predict(folder, "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[600]
    assert names(folder) == DONE


def pages(store: Path) -> list[bytes]:
    """What a store consists of."""
    data = store.read_bytes()
    size = int.from_bytes(data[16:18])
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a09_an_answer_that_is_damaged_is_asked_again_and_no_other(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 192)
    store = folder / "out.csv.store"
    data = bytearray(store.read_bytes())
    place = data.rindex(b'["yes"')
    data[place + 3] ^= 1
    store.write_bytes(data)
    code, numbers = ask(folder, "--quiet")
    assert (code, len(numbers)) == (0, 9)
    assert set(numbers) > set(range(192, 200))
    assert (folder / "out.csv").read_bytes() == expected[200]


@pytest.mark.parametrize("damage", ["zeroes", "noise", "cut"])
def test_a09_a_damaged_store_is_mended_with_every_answer_that_can_be_read(
    commands: Commands, folder: Path, expected: dict[int, bytes], damage: str
) -> None:
    leave(commands, folder, 192)
    store = folder / "out.csv.store"
    whole = pages(store)
    answers = [at for at, page in enumerate(whole) if page[:1] == b"\x0d" and b'["yes"' in page]
    assert len(answers) == 4
    if damage == "cut":
        whole = whole[: answers[-1]]
    else:
        page = whole[answers[1]]
        whole[answers[1]] = bytes(len(page)) if damage == "zeroes" else page[::-1]
    store.write_bytes(b"".join(whole))
    before = store.read_bytes()
    code, output = call(*words(folder), environ={"SCRIPTED_ENGINE": "{}"})
    assert code == 0, output
    told = re.search(r"was damaged: ([0-9]+) answers could be read", output)
    assert told is not None
    kept = int(told[1])
    assert 100 < kept < 192
    assert f"{kept} of them answered before, {200 - kept} to ask" in output
    assert (folder / "out.csv").read_bytes() == expected[200]
    aside = {"out.csv.store.damaged-1", "out.csv.store.damaged-1-journal"}
    assert DONE < names(folder) <= DONE | aside
    assert (folder / "out.csv.store.damaged-1").read_bytes() == before


def test_a10_an_empty_store_is_a_beginning(folder: Path, expected: dict[int, bytes]) -> None:
    (folder / "out.csv.store").touch()
    assert ask(folder, "--quiet") == (0, list(range(200)))
    assert (folder / "out.csv").read_bytes() == expected[200]


def test_a10_a_store_of_which_nothing_can_be_read_is_told(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 64)
    store = folder / "out.csv.store"
    store.write_bytes(store.read_bytes()[:4096])
    before = store.read_bytes()
    code, output = call(*words(folder, "--quiet"))
    assert (code, "Add `--fresh` to move it aside" in output) == (70, True)
    assert store.read_bytes() == before
    assert predict(folder, "--fresh", "--quiet") == 0
    assert (folder / "out.csv").read_bytes() == expected[200]
    assert (folder / "out.csv.store.old-1").read_bytes() == before


def failures(folder: Path) -> list[tuple[int, str]]:
    """The rows without an answer and what is wrong with each."""
    rows = enumerate(read_rows(folder / "out.csv"))
    return [(n, row["error"].split(":")[0]) for n, row in rows if row["status"] == "error"]


def same_but(folder: Path, whole: bytes, *failed: int) -> bool:
    """Whether the output is as it should be in every row but those that failed."""
    got = (folder / "out.csv").read_bytes().split(b"\nq")
    return [row for row, line in enumerate(got[1:]) if line != whole.split(b"\nq")[row + 1]] == [
        *failed
    ]


def test_a11_an_engine_that_dies_once_costs_no_row(
    folder: Path, expected: dict[int, bytes]
) -> None:
    assert ask(folder, script={"crash": {"70": 1}})[0] == 0
    assert (folder / "out.csv").read_bytes() == expected[200]


def costs_no_other(
    folder: Path, whole: bytes, row: int, error: str, script: dict[str, object], *options: object
) -> None:
    """A row at which the engine fails is an error; all others come out as they should."""
    assert ask(folder, *options, script=script)[0] == 3
    assert failures(folder) == [(row, error)]
    assert same_but(folder, whole, row)
    assert ask(folder, "--retry-errors") == (0, [row])
    assert (folder / "out.csv").read_bytes() == whole


def test_a11_a_row_that_kills_the_engine_is_found_and_costs_no_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    costs_no_other(folder, expected[200], 70, "engine_crashed", {"crash": {"70": 99}})


def test_a12_a_row_that_does_not_fit_into_memory_costs_no_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    costs_no_other(folder, expected[200], 3, "engine_oom", {"oom": [3]})


def test_a13_a_row_at_which_the_engine_is_stuck_costs_no_other(
    folder: Path, expected: dict[int, bytes]
) -> None:
    costs_no_other(folder, expected[200], 199, "timeout", {"hang": [199]}, "--row-timeout", 2)


def test_a14_a_process_that_the_kernel_kills_is_as_any_other(
    commands: Commands, folder: Path, expected: dict[int, bytes]
) -> None:
    leave(commands, folder, 64)  # by what the out-of-memory killer sends
    code, numbers = ask(folder, "--quiet")
    assert (code, sorted(numbers)) == (0, list(range(64, 200)))
    assert (folder / "out.csv").read_bytes() == expected[200]
    assert [item["kept"] for item in manifest(folder)["starts"]] == [0, 64]


def test_a15_a_complete_output_is_left_alone_and_no_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(folder, "--quiet") == 0
    before = {name: identity(folder / name) for name in names(folder)}
    monkeypatch.setattr("mmrag_batch.run.predict.find_stages", refuse)
    monkeypatch.setattr("mmrag_batch.run.predict.load_bundle", refuse)
    started = time.process_time()
    assert predict(folder) == 0
    assert time.process_time() - started < 1
    assert {name: identity(folder / name) for name in names(folder)} == before


def test_a_slow_row_does_not_keep_the_others_uncommitted(commands: Commands, folder: Path) -> None:
    settings = {**QUICK, "commit_seconds": 0.05}
    running = begin(commands, folder, script={"slow": {"100": 600}}, changes=settings)
    wait_for(lambda: committed(folder) == 100)
    running.send_signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL


def test_a_commit_syncs_the_journal_thrice_the_store_once_and_nothing_else(
    commands: Commands, folder: Path
) -> None:
    """Answers are committed one by one where that is asked for."""
    write_table(folder / "in.csv", 10)
    syncs = []
    for rows in (10, 1):
        changes = {**QUICK, "commit_rows": rows}
        log = run(commands, folder, log=True, changes=changes).operations
        syncs.append(Counter(what for what in log if re.fullmatch(r"sync .*(?<!\.tmp)", what)))
        for name in DONE - {"in.csv"}:
            (folder / name).unlink()
    of_one = {"sync out.csv.store-journal": 3, "sync out.csv.store": 1}
    assert syncs[1] - syncs[0] == {what: 9 * count for what, count in of_one.items()}
