"""Which rows are whose, which shard a task of an array has, and what shards leave to each other."""

import os
import shlex
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrag_batch.errors import ConfigError
from mmrag_batch.run.files import Paths
from mmrag_batch.run.shards import (
    Shard,
    find_shard,
    find_shards,
    open_folder,
    shard_paths,
    shard_rows,
)
from tests.faults.commands import Commands, Running
from tests.run.parts import ROWS, Place, array, call, count, questions, wait_for, whole


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with a table of ROWS questions."""
    place = Place(tmp_path)
    place.write(questions())
    return place


def once(rows: Iterable[int]) -> Counter[int]:
    """Each of these rows, asked once."""
    return Counter(rows)


def run_array(place: Place, tasks: Sequence[int], *, only: Iterable[int] | None = None) -> None:
    """Run the tasks of an array one after the other, or some of them."""
    for task in tasks if only is None else only:
        done = place.predict(environ=array(task, tasks))
        assert done.exit_code == 0, done.stderr


@given(rows=st.integers(0, 10**12), count=st.integers(1, 200))
def test_shards_cover_every_row_once_and_in_order(rows: int, count: int) -> None:
    parts = [shard_rows(rows, Shard(index, count)) for index in range(count)]
    assert parts[0].start == 0
    assert parts[-1].stop == rows
    assert all(part.stop == after.start for part, after in pairwise(parts))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_is_told_by_its_flag(place: Place) -> None:
    assert find_shard("2/4", {}, place.output) == Shard(2, 4)
    assert find_shard("0/2", array(2, range(4)), place.output) == Shard(0, 2)
    assert find_shard(None, {}, place.output) is None
    with pytest.raises(ConfigError, match=r"--shard 4/4: shards of 4 go from 0 to 3\."):
        find_shard("4/4", {}, place.output)


@pytest.mark.parametrize(
    ("task", "tasks", "step", "shard"),
    [
        (2, [0, 1, 2, 3], 1, Shard(2, 4)),
        (1, [1, 2, 3, 4], 1, Shard(0, 4)),
        (6, [0, 3, 6, 9], 3, Shard(2, 4)),
        (2, [2], 1, Shard(0, 1)),
        (3, [2, 3], 1, Shard(1, 2)),
        (3, [1, 3], 1, Shard(3, 4)),  # of which there must have been four at least
    ],
)
def test_a_task_of_an_array_has_the_shard_of_its_place(
    place: Place, task: int, tasks: list[int], step: int, shard: Shard
) -> None:
    assert find_shard(None, array(task, tasks, step), place.output) == shard


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "v1.2.csv"])
def test_stores_of_shards_lie_beside_the_output_and_are_found_again(
    tmp_path: Path, name: str
) -> None:
    output = tmp_path / name
    for folder in (output, tmp_path / "other.csv"):
        open_folder(folder)
    begun = [Shard(1, 2), Shard(0, 3), Shard(2, 3)]
    for shard in begun:
        shard_paths(output, shard).store.touch()
    shard_paths(tmp_path / "other.csv", Shard(1, 3)).store.touch()
    for stranger in ("1-of-3.store-journal", "1-of-3.store.old-1", "x-of-3.store", "notes.txt"):
        (Paths.of(output).shards / stranger).touch()
    assert [shard for shard, _ in find_shards(output)] == begun
    assert Paths.of(output).shards.parent == tmp_path


@pytest.mark.parametrize("kind", ["file", "link"])
def test_j12_a_stranger_at_the_place_of_the_shards_is_left_alone(place: Place, kind: str) -> None:
    folder, elsewhere = place.folder / "out.csv.shards", place.folder / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere) if kind == "link" else folder.write_text("precious")
    done = place.predict("--shard", "0/2")
    assert done.exit_code == 73
    assert "out.csv.shards is no folder" in done.stderr
    assert not any(elsewhere.iterdir())
    assert kind == "link" or folder.read_text() == "precious"


def test_a_shard_asks_its_rows_and_writes_no_output(place: Place) -> None:
    assert place.predict("--shard", "1/4").exit_code == 0
    assert place.asked() == once(range(10, 20))
    assert place.shards == {"1-of-4.store", "lock"}
    assert not place.output.exists()
    assert place.predict("--shard", "1/4").exit_code == 0
    assert not place.asked()


def test_d04_arrays_of_any_size_go_on_from_each_other(place: Place) -> None:
    assert place.predict("--shard", "1/3").exit_code == 0
    assert place.asked() == once(range(13, 26))
    run_array(place, range(5), only=(2, 0))
    assert place.asked() == once(range(8))
    run_array(place, range(2))
    assert place.asked() == once([*range(8, 13), *range(26, ROWS)])
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions()))


@pytest.mark.parametrize(
    ("before", "step", "done", "again"),
    [
        ([0, 1, 2, 3], 1, [0, 2], [1, 3]),
        ([1, 2, 3, 4], 1, [2, 4], [1, 3]),
        ([1, 2, 3, 4], 1, [3], [1, 2, 4]),
        ([0, 2, 4, 6], 2, [0, 4], [2, 6]),
        ([0, 1, 2, 3], 1, [2], [0, 1, 3]),
        ([0, 1, 2, 3], 1, [0, 1, 3], [2]),
        ([0, 1, 2, 3, 4, 5, 6, 7], 1, [2, 3, 4, 5, 7], [0, 1, 6]),
        ([0, 1, 2, 3], 1, [0, 2], [0, 1]),
        ([0, 1, 2, 3], 1, [0, 2], [0, 1, 2]),
        ([0, 1, 2, 3], 1, [1], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 2, 3], 1, [0, 2], [1, 2, 3, 4]),
        ([0, 1, 2, 3], 1, [], [0, 1, 2, 3]),
    ],
)
def test_j07_tasks_that_are_submitted_again_ask_what_is_missing(
    place: Place, before: list[int], step: int, done: list[int], again: list[int]
) -> None:
    for task in done:
        assert place.predict(environ=array(task, before, step)).exit_code == 0
    run_array(place, again)
    assert place.asked() == once(range(ROWS))
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions()))


def test_j07_of_two_arrays_the_last_one_says_what_a_list_of_its_tasks_stands_for(
    place: Place,
) -> None:
    run_array(place, range(8), only=[5])
    run_array(place, range(1, 5), only=[2, 4])
    run_array(place, [1, 3])
    assert place.asked() == once(range(ROWS))


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_j07_any_arrays_one_after_the_other_answer_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 30), label="rows")
    place = Place(tmp_path_factory.mktemp("any"))
    place.write(questions(rows))
    sizes = st.integers(1, 9)
    for _ in range(data.draw(st.integers(0, 2), label="arrays that were given up")):
        first = data.draw(st.integers(0, 2), label="first")
        tasks = range(first, first + data.draw(sizes, label="size"))
        some = st.lists(st.sampled_from(tasks), unique=True, min_size=1, max_size=3)
        chosen = data.draw(some, label="tasks")
        if data.draw(st.booleans(), label="as a list"):
            run_array(place, sorted(chosen))
        else:
            run_array(place, tasks, only=chosen)
    before = place.asked()
    tasks = range(data.draw(sizes, label="last size"))
    run_array(place, tasks, only=data.draw(st.permutations(tasks), label="order"))
    assert before + place.asked() == once(range(rows))
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions(rows)))


def wait_until_stuck(place: Place, shard: str, answers: int = 3) -> None:
    """Wait until a shard has so many answers on disk; there it stays."""
    store = shard_paths(place.output, Shard(*map(int, shard.split("/")))).store
    wait_for(lambda: count(store) == answers)


def stop(running: Running) -> None:
    running.send_signal(signal.SIGTERM)
    done = running.wait()
    assert done.code == 75, done.output


def test_j07_what_tasks_are_at_is_left_to_them(place: Place, commands: Commands) -> None:
    """Tasks 0 and 2 are stuck at their fourth row when 1 and 3 are submitted again."""
    tasks = range(4)
    at_work = [
        place.start(commands, environ=array(task, tasks), hang=[10 * task + 3]) for task in (0, 2)
    ]
    wait_until_stuck(place, "0/4")
    wait_until_stuck(place, "2/4")
    run_array(place, [1, 3])
    for size in (2, 3, 8):
        run_array(place, range(size))
    run_array(place, [0, 1, 3], only=[1, 3])
    early = place.merge()
    assert early.exit_code == 4
    assert "Still at work: shard 0/4, 2/4. Merge again when it is done." in early.stderr
    for running in at_work:
        stop(running)
    asked = place.asked()
    assert asked == once([*range(3), *range(10, 23), *range(30, ROWS)])
    run_array(place, tasks)
    assert asked + place.asked() == once(range(ROWS))
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions()))


def test_a_run_of_all_rows_takes_over_what_shards_have_answered(place: Place) -> None:
    run_array(place, range(4), only=[0, 2])
    place.asked()
    assert place.predict().exit_code == 0
    assert place.asked() == once([*range(10, 20), *range(30, ROWS)])
    assert place.output.read_bytes() == whole(tuple(questions()))


def test_a_shard_takes_over_what_a_run_of_all_rows_has_answered(place: Place) -> None:
    assert place.predict("--limit", 15).exit_code == 0
    place.asked()
    assert place.predict("--shard", "1/4").exit_code == 0
    assert place.asked() == once(range(15, 20))


def test_a_run_of_all_rows_answers_the_others_while_shards_are_at_work(
    place: Place, commands: Commands
) -> None:
    running = place.start(commands, "--shard", "1/4", hang=[13])
    wait_until_stuck(place, "1/4")
    done = place.predict()
    assert done.exit_code == 11
    assert "rows are being answered by other runs" in done.stderr
    assert "`mmrag-batch status " in done.stderr
    assert not place.output.exists()
    stop(running)
    asked = place.asked()
    assert asked == once([*range(13), *range(20, ROWS)])
    assert place.predict().exit_code == 0
    assert asked + place.asked() == once(range(ROWS))
    assert place.output.read_bytes() == whole(tuple(questions()))


def test_j07_what_a_task_answered_before_it_was_requeued_is_not_asked_again(
    place: Place, commands: Commands
) -> None:
    """Nobody can tell yet which rows it is at: it has only begun to read its table."""
    first = place.start(commands, "--shard", "0/4", hang=[3])
    wait_until_stuck(place, "0/4")
    stop(first)
    go_on = str(place.folder / "go-on")
    requeued = place.start(commands, "--shard", "0/4", hook="stay_at_survey", hook_argument=go_on)
    wait_for(Path(f"{go_on}.wanted").exists)
    assert place.predict("--shard", "0/2").exit_code == 0
    Path(go_on).touch()
    assert requeued.wait().code == 0
    assert place.asked() == once(range(ROWS // 2))


def test_runs_that_start_together_do_not_leave_rows_to_each_other(
    place: Place, commands: Commands
) -> None:
    shards = ("0/2", "0/3")
    started = [place.start(commands, "--shard", one, hook="look_together") for one in shards]
    for running in started:
        done = running.wait()
        assert done.code == 0, done.output
    assert place.asked() == once(range(ROWS // 2))


def test_of_many_runs_that_start_together_one_asks_each_row(
    place: Place, commands: Commands
) -> None:
    shards = [f"{index}/{count}" for count in (2, 3, 4) for index in range(count)]
    started = [place.start(commands, "--shard", shard) for shard in shards]
    for running in started:
        done = running.wait()
        assert done.code == 0, done.output
    assert place.asked() == once(range(ROWS))
    assert place.merge().exit_code == 0


def test_i04_a_shard_that_is_started_twice_has_one_writer(place: Place, commands: Commands) -> None:
    first = place.start(commands, "--shard", "1/4", hang=[13])
    wait_until_stuck(place, "1/4")
    second = place.predict("--shard", "1/4")
    assert second.exit_code == 11
    assert "Another run writes this output: host" in second.stderr
    assert f"pid {first.pid}" in second.stderr
    stop(first)
    assert place.predict("--shard", "1/4").exit_code == 0
    assert place.asked() == once(range(10, 20))


def test_i05_times_of_files_decide_nothing(place: Place) -> None:
    run_array(place, range(4))
    hour = 3600
    files = [place.table, *(place.folder / "out.csv.shards").iterdir()]
    for number, file in enumerate(sorted(files)):
        seconds = file.stat().st_mtime + hour * (-1) ** number
        os.utime(file, (seconds, seconds))
    place.asked()
    run_array(place, range(4))
    assert place.merge().exit_code == 0
    assert not place.asked()
    written = place.output.stat().st_mtime_ns
    os.utime(place.table, (9 * hour,) * 2)
    assert place.predict().exit_code == place.merge().exit_code == 0
    assert place.output.stat().st_mtime_ns == written
    assert not place.asked()


def test_shards_of_a_limited_run_are_parts_of_its_rows(place: Place) -> None:
    for index in range(3):
        assert place.predict("--shard", f"{index}/3", "--limit", 7).exit_code == 0
    assert place.asked() == once(range(7))
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions()), limit=7)


def test_more_shards_than_rows_answer_each_row_once(place: Place) -> None:
    place.write(questions(2))
    run_array(place, range(5))
    assert place.asked() == once(range(2))
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions(2)))


def test_a_store_of_several_outputs_is_not_for_shards(place: Place) -> None:
    done = place.predict("--shard", "0/2", "--store", place.folder / "answers.store")
    assert done.exit_code == 78
    assert "--store is not for shards" in done.stderr
    assert not place.shards


def test_a_shard_that_begins_anew_leaves_the_stores_of_its_array_alone(place: Place) -> None:
    run_array(place, range(4))
    run_array(place, range(3))
    assert place.merge().exit_code == 0
    place.asked()
    assert place.predict("--shard", "1/4", "--fresh").exit_code == 0
    assert place.asked() == once(range(10, 20))
    moved = {f"{index}-of-3.store.old-1" for index in range(3)} | {"1-of-4.store.old-1"}
    assert place.shards == {f"{index}-of-4.store" for index in range(4)} | moved | {"lock"}


def test_an_array_that_begins_anew_is_what_is_merged(place: Place) -> None:
    """The engine could not answer a row before and can now, or the other way round."""
    assert place.predict().exit_code == 0
    run_array(place, range(2))
    for index in range(2):
        place.predict("--shard", f"{index}/2", "--fresh", oom=[5])
    assert place.asked() == once(range(ROWS)) + once(range(ROWS))
    done = place.merge()
    assert done.exit_code == 3
    assert "1 of 40 rows have no answer (engine_oom 1), the first in line 7" in done.stderr


def test_a_run_that_begins_anew_takes_nothing_over_from_shards(place: Place) -> None:
    run_array(place, range(2))
    assert place.predict("--fresh", oom=[5]).exit_code == 3
    assert place.asked() == once(range(ROWS)) + once(range(ROWS))
    assert place.predict().exit_code == 3
    assert place.merge().exit_code == 66
    assert not place.asked()


def test_d03_a_shard_with_other_settings_than_the_output_is_refused(place: Place) -> None:
    assert place.predict("--limit", 3).exit_code == 0
    done = place.predict("--shard", "0/2", "--top-k", 1)
    assert done.exit_code == 78
    assert "top_k: was 3, is 1" in done.stderr
    assert place.asked() == once(range(3))
    assert place.predict("--shard", "0/2", "--top-k", 1, "--fresh").exit_code == 0
    assert place.asked() == once(range(ROWS // 2))


def test_a_shard_ends_with_3_and_the_next_command_when_rows_fail(place: Place) -> None:
    done = place.predict("--shard", "1/4", "--quiet", oom=[12, 13])
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    words = ["mmrag-batch", "predict", str(place.table), str(place.output)]
    command = shlex.join([*words, "--engine", "scripted", "--shard", "1/4", "--retry-errors"])
    assert line.startswith("mmrag-batch: 2 of 10 rows have no answer")
    assert line.endswith(f"run `{command}`.")
    place.asked()
    assert call(*shlex.split(command)[1:], environ=place.environ()).exit_code == 0
    assert place.asked() == once([12, 13])


def test_a_shard_ends_with_4_when_more_rows_fail_than_may(place: Place) -> None:
    done = place.predict("--shard", "1/4", "--max-row-errors", 1, oom=[10, 11, 12])
    assert done.exit_code == 4
    assert "2 rows failed, more than --max-row-errors allows" in done.stderr
    assert place.predict("--shard", "1/4", "--retry-errors").exit_code == 0


def test_a_shard_ends_with_75_when_it_is_stopped(place: Place, commands: Commands) -> None:
    running = place.start(commands, "--shard", "1/4", hang=[13])
    wait_until_stuck(place, "1/4")
    running.send_signal(signal.SIGUSR1)
    done = running.wait()
    assert done.code == 75
    assert "Run the same command again to go on." in done.output
    assert place.predict("--shard", "1/4").exit_code == 0
    assert place.asked() == once(range(10, 20))
