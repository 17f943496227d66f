"""Shards that are answered apart and merged: the bytes of one run, or a refusal that says why."""

import errno
import json
import re
import shlex
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from mmrag_batch.run.files import Paths
from mmrag_batch.run.shards import Shard, shard_paths
from tests.faults.commands import Commands, Done, Fault
from tests.faults.harness import telling
from tests.run.parts import ROWS, Place, call, question, questions, whole

Kind = Literal["kill", "torn", "power"] | int
BROKEN = (7, 20, 39)
"""Rows without an answer, in different shards."""
LINES = tuple(questions(broken=BROKEN))


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table that four shards have answered, of which one row has failed."""
    place = Place(tmp_path_factory.mktemp("answered"))
    place.write(LINES)
    answer(place, 4)
    return place.folder


@pytest.fixture
def place(answered: Path, tmp_path: Path) -> Place:
    """A copy that a test may change."""
    copy = Place(shutil.copytree(answered, tmp_path / "answered"))
    copy.asked()
    return copy


def answer(place: Place, count: int, *options: object) -> None:
    """Answer a table in so many shards."""
    for index in range(count):
        done = place.predict("--shard", f"{index}/{count}", *options)
        assert done.exit_code in (0, 3), done.stderr


def store_of(place: Place, index: int, count: int) -> Path:
    return shard_paths(place.output, Shard(index, count)).store


def manifest_of(place: Place) -> dict[str, object]:
    manifest: dict[str, object] = json.loads(Paths.of(place.output).manifest.read_text())
    return manifest


def state_of(place: Place) -> dict[str, tuple[bytes, int]]:
    """What is in the files beside an output, and when each was written."""
    files = (file for file in place.folder.glob("out.csv*") if file.is_file())
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl"])
def test_d04_merged_shards_are_the_bytes_of_one_run(tmp_path: Path, name: str) -> None:
    shards, alone = Place(tmp_path, name), Place(tmp_path, f"alone-{name}")
    shards.write(LINES)
    answer(shards, 4)
    done = shards.merge()
    assert done.exit_code == 3, done.stderr
    assert alone.predict().exit_code == 3
    assert shards.output.read_bytes() == alone.output.read_bytes()
    differ = ("starts", "seconds", "finished", "asked", "kept", "revision", "checksum")
    manifests = [manifest_of(place) for place in (shards, alone)]
    told = [{k: v for k, v in manifest.items() if k not in differ} for manifest in manifests]
    assert told[0] == told[1]
    starts = manifests[0]["starts"]
    assert isinstance(starts, list)
    assert [start["first"] for start in starts] == [0, 10, 20, 30]
    assert sum(start["asked"] for start in starts) == ROWS - len(BROKEN)


def test_a_merge_says_which_rows_failed_and_the_next_command(place: Place) -> None:
    done = place.merge()
    assert done.exit_code == 3
    assert f"4 shards of {place.output} are joined." in done.stderr
    assert "3 of 40 rows have no answer (bad_choices 3), the first in line 9" in done.stderr
    (command,) = re.findall("run `(.*)`", done.stderr)
    assert call(*shlex.split(command)[1:], environ=place.environ()).exit_code == 3
    assert not place.asked()


def test_a_merge_that_is_done_changes_nothing(place: Place) -> None:
    assert place.merge().exit_code == 3
    before = place.output.stat().st_mtime_ns
    assert place.merge().exit_code == 3
    assert place.predict().exit_code == 3
    answer(place, 2)
    assert place.merge().exit_code == 3
    assert place.output.stat().st_mtime_ns == before
    assert place.output.read_bytes() == whole(LINES)
    assert not place.asked()


def test_a_run_of_all_rows_goes_on_from_a_merge_without_its_shards(place: Place) -> None:
    assert place.merge().exit_code == 3
    shutil.rmtree(place.folder / "out.csv.shards")
    place.write([*LINES, question(ROWS)])
    assert place.predict().exit_code == 3
    assert place.asked() == {ROWS: 1}
    assert place.output.read_bytes() == whole((*LINES, question(ROWS)))


def test_the_better_answer_is_merged(place: Place) -> None:
    """Rows fail for want of memory, are merged, and one shard tries its own again."""
    place.write(questions())
    for index in range(4):
        place.predict("--shard", f"{index}/4", "--fresh", oom=[5, 15])
    first = place.merge()
    assert "2 of 40 rows have no answer (engine_oom 2)" in first.stderr
    assert place.predict("--shard", "1/4", "--retry-errors").exit_code == 0
    second = place.merge()
    assert "1 of 40 rows have no answer (engine_oom 1), the first in line 7" in second.stderr
    assert place.predict("--shard", "0/4", "--retry-errors").exit_code == 0
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions()))


def test_an_image_that_arrives_late_needs_no_flag_at_the_merge(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.table.write_text("question_text,question_image\nWhat?,\nWhy?,late.png\n")
    answer(place, 2)
    assert "image_missing 1" in place.merge().stderr
    Image.new("RGB", (8, 8)).save(place.folder / "late.png")
    assert place.predict("--shard", "1/2", "--retry-errors").exit_code == 0
    assert place.merge().exit_code == 0


def test_d07_what_is_missing_is_listed_and_the_command_for_it_works(place: Place) -> None:
    for index in (1, 3):
        store_of(place, index, 4).unlink()
    done = place.merge()
    assert done.exit_code == 4
    assert not place.output.exists()
    assert "19 of 40 rows have no answer (lines 12 to 21, 32 to 40)" in done.stderr
    assert "Run shard 1/4, 3/4 again" in done.stderr
    (command,) = re.findall("`(.*)`", done.stderr)
    words = shlex.split(command)
    for shard in ("1/4", "3/4"):
        assert words[-1] == "1/4"
        assert call(*words[1:-1], shard, environ=place.environ()).exit_code in (0, 3)
    assert place.asked() == dict.fromkeys([*range(10, 20), *range(30, 39)], 1)
    assert place.merge().exit_code == 3
    assert place.output.read_bytes() == whole(LINES)


def test_d07_the_command_asks_with_the_settings_of_the_others(place: Place) -> None:
    answer(place, 4, "--fresh", "--top-k", 1)
    store_of(place, 2, 4).unlink()
    place.asked()
    (command,) = re.findall("`(.*)`", place.merge().stderr)
    assert call(*shlex.split(command)[1:], environ=place.environ()).exit_code == 3
    assert place.asked() == dict.fromkeys(range(21, 30), 1)
    assert place.merge().exit_code == 3


def test_d07_rows_that_were_added_or_mended_since_are_missing(place: Place) -> None:
    lines = [*LINES, question(ROWS)]
    lines[12] = question(12, word="weighs")
    place.write(lines)
    done = place.merge()
    assert done.exit_code == 4
    assert "2 of 41 rows have no answer (lines 14, 42)" in done.stderr
    answer(place, 4)
    assert place.asked() == {12: 1, ROWS: 1}
    assert place.merge().exit_code == 3
    assert place.output.read_bytes() == whole(tuple(lines))


def test_d03_shards_of_different_settings_are_told_apart(place: Place) -> None:
    store = store_of(place, 2, 4)
    store.unlink()
    assert place.predict("--shard", "2/4", "--top-k", 1).exit_code == 3
    done = place.merge()
    assert done.exit_code == 78
    assert "top_k: was 3, is 1" in done.stderr
    assert str(store) in done.stderr
    assert not place.output.exists()
    store.unlink()
    assert place.predict("--shard", "2/4").exit_code == 3
    assert place.merge().exit_code == 3


def test_d03_an_output_of_other_settings_is_not_merged_over(place: Place) -> None:
    assert place.predict("--top-k", 1).exit_code == 3
    before = place.output.read_bytes()
    done = place.merge()
    assert done.exit_code == 78
    assert "top_k: was 3, is 1" in done.stderr
    assert place.output.read_bytes() == before


def test_shards_of_two_tables_are_merged_for_the_one_that_is_named(place: Place) -> None:
    other = place.folder / "other.csv"
    other.write_bytes(place.table.read_bytes())
    environ = place.environ()
    again = call("predict", other, place.output, "--shard", "1/4", environ=environ)
    assert again.exit_code == 0
    done = place.merge()
    assert done.exit_code == 78
    assert "in.csv" in done.stderr
    assert "other.csv: say which, with `--input FILE`" in done.stderr
    assert place.merge("--input", other).exit_code == 3
    assert place.output.read_bytes() == whole(LINES)


def test_a_table_is_found_from_a_folder_that_is_a_link(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "far" / "scratch"
    scratch.mkdir(parents=True)
    (place.folder / "results").symlink_to(scratch)
    monkeypatch.chdir(place.folder)
    for index in range(2):
        words = ("predict", "in.csv", "results/out.csv", "--shard", f"{index}/2")
        assert call(*words, environ=place.environ()).exit_code == 3
    monkeypatch.chdir(tmp_path)
    assert call("merge", place.folder / "results" / "out.csv").exit_code == 3
    assert (scratch / "out.csv").read_bytes() == whole(LINES)


def test_d06_an_output_that_was_edited_is_refused(place: Place) -> None:
    place.merge()
    with place.output.open("a") as stream:
        stream.write("one more row\n")
    before = state_of(place)
    done = place.merge()
    assert done.exit_code == 78
    assert "out.csv was changed since it was written" in done.stderr
    assert state_of(place)["out.csv"] == before["out.csv"]
    assert place.merge("--overwrite").exit_code == 3
    assert place.output.read_bytes() == whole(LINES)


def test_c07_an_output_of_a_stranger_is_kept(place: Place) -> None:
    place.output.write_text("precious")
    assert place.merge().exit_code == 73
    assert place.output.read_text() == "precious"
    assert place.merge("--overwrite").exit_code == 3
    assert place.output.read_bytes() == whole(LINES)


def test_c06_an_output_that_is_the_table_is_refused(place: Place) -> None:
    place.output.symlink_to("in.csv")
    before = place.table.read_bytes()
    done = place.merge("--overwrite")
    assert done.exit_code == 73
    assert place.table.read_bytes() == before


def test_no_shards_are_no_output(tmp_path: Path) -> None:
    assert call("merge", tmp_path / "absent" / "out.csv").exit_code == 66
    done = call("merge", tmp_path / "out.csv")
    assert done.exit_code == 66
    assert "--shard 0/4" in done.stderr


def test_a_table_that_is_gone_is_named(place: Place) -> None:
    place.table.unlink()
    done = place.merge()
    assert done.exit_code == 66
    assert "in.csv" in done.stderr


def test_answers_of_a_damaged_shard_are_read_as_far_as_they_are_whole(place: Place) -> None:
    with sqlite3.connect(store_of(place, 1, 4), isolation_level=None) as sql:
        sql.execute("UPDATE answers SET answer = '[]' WHERE place = 3")
    sql.close()
    store_of(place, 2, 4).write_text("no store at all")
    done = place.merge()
    assert done.exit_code == 4
    assert "10 of 40 rows have no answer (lines 14, 23 to 31)" in done.stderr
    assert "Passed over: " in done.stderr
    answer_again = [place.predict("--shard", f"{index}/4").exit_code for index in (1, 2)]
    assert answer_again == [0, 73]
    store_of(place, 2, 4).unlink()
    assert place.predict("--shard", "2/4").exit_code == 3
    assert place.merge().exit_code == 3
    assert place.output.read_bytes() == whole(LINES)


def change_table(place: Place) -> tuple[str, ...]:
    """Half of the rows are others now, and there are more of them."""
    lines = (*questions(ROWS // 2), *questions(ROWS, word="weighs"))
    place.write(lines)
    return lines


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (3, ["0/4", "1/4", "2/4", "3/4"]),
        (3, ["1/2", "0/2"]),
        (4, ["3/4", "0/4", "1/4", "2/4"]),
        (1, ["0/3", "1/3", "2/3"]),
        (3, ["0/4", "1/4", "1/2"]),
        (3, ["0/2", "2/4", "1/2"]),
    ],
)
def test_j06_stores_of_an_old_table_give_nothing_to_the_output_of_a_new_one(
    tmp_path: Path, old: int, new: list[str]
) -> None:
    place = Place(tmp_path)
    place.write(questions())
    answer(place, old)
    place.asked()
    lines = change_table(place)
    early = place.merge()
    assert early.exit_code == 4
    assert "40 of 60 rows have no answer (lines 22 to 61)" in early.stderr
    *most, last = new
    for shard in most:
        assert place.predict("--shard", shard).exit_code == 0
    late = place.merge()
    assert late.exit_code == 4
    assert "is not finished yet" in late.stderr
    assert not place.output.exists()
    assert place.predict("--shard", last).exit_code == 0
    assert place.asked() == dict.fromkeys(range(ROWS // 2, len(lines)), 1)
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(lines)


def test_j06_an_output_of_an_old_table_is_not_taken_for_that_of_a_new_one(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(questions())
    answer(place, 3)
    assert place.merge().exit_code == 0
    lines = change_table(place)
    assert place.merge().exit_code == 4
    assert place.output.read_bytes() == whole(tuple(questions()))
    answer(place, 2)
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(lines)
    place.write(questions())
    assert place.merge().exit_code == 0
    assert place.output.read_bytes() == whole(tuple(questions()))


def check_merged(place: Place, lines: tuple[str, ...] = LINES) -> None:
    """Merging again gives the whole output, and leaves nothing behind that is no part of it."""
    assert place.merge().exit_code == 3
    assert place.output.read_bytes() == whole(lines)
    names = {file.name for file in place.folder.glob("out.csv*")}
    parts = ("", ".manifest.json", ".store", ".shards")
    assert names == {f"out.csv{part}" for part in parts}


def merge_with_faults(
    folder: Path, commands: Commands, kind: Kind, only: str, stride: int
) -> list[int]:
    """The exit codes of merges with a fault at each of their operations that can tell something."""
    lines = tuple(questions(6, broken=[4]))
    place = Place(folder / "merged")
    place.folder.mkdir()
    place.write(lines)
    answer(place, 2)
    before = place.folder.rename(folder / "before")

    def merge(fault: Fault) -> Done:
        shutil.rmtree(place.folder, ignore_errors=True)
        shutil.copytree(before, place.folder)
        words, hook = ("merge", "out.csv"), "tests.faults.hooks:settle"
        return commands.run(
            *words, folder=place.folder, fault=fault, hook=hook, hook_argument={}, log=True
        )

    codes: list[int] = []
    for at in telling(merge(Fault(-1, only=only)).operations)[::stride]:
        done = merge(Fault(at, kind, only))
        codes.append(done.code)
        assert "Traceback" not in done.output
        assert not place.output.exists() or place.output.read_bytes() == whole(lines)
        check_merged(place, lines)
    return codes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "only", "stride"),
    [("kill", "", 1), ("torn", "write", 3), ("power", "sync,rename,unlink", 1)],
)
def test_a06_a_merge_that_dies_at_any_step_shows_the_output_whole_or_not_at_all(
    tmp_path: Path, commands: Commands, kind: Kind, only: str, stride: int
) -> None:
    codes = merge_with_faults(tmp_path, commands, kind, only, stride)
    assert set(codes) == {-signal.SIGKILL}
    assert len(codes) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "only", "stride"),
    [(errno.ENOSPC, "write,create", 3), (errno.EIO, "sync,rename,unlink", 1)],
)
def test_c02_a_disk_that_fails_at_any_step_of_a_merge_leaves_the_output_as_it_was(
    tmp_path: Path, commands: Commands, number: int, only: str, stride: int
) -> None:
    codes = merge_with_faults(tmp_path, commands, number, only, stride)
    # 73: the first file cannot be made. In the end a journal and the lock are removed, or stay.
    assert set(codes[:-2]) <= {73, 74}, codes
    assert set(codes[-2:]) <= {3, 74}, codes
    assert codes.count(74) > 10


@pytest.mark.parametrize(
    "step", ["merge:survey_all", "merge:adopt", "merge:publish", "publish:_check", "files:replace"]
)
def test_b06_a_merge_that_is_told_to_stop_finishes(
    place: Place, commands: Commands, step: str
) -> None:
    hook = "tests.run.parts:stop_at"
    done = commands.run("merge", "out.csv", folder=place.folder, hook=hook, hook_argument=step)
    assert done.code == 3, done.output
    check_merged(place)


def test_b06_a_merge_that_is_told_to_stop_and_takes_too_long_can_be_run_again(
    place: Place, commands: Commands
) -> None:
    hook = "tests.run.parts:stop_and_stay_at"
    words = ("merge", "out.csv")
    done = commands.run(*words, folder=place.folder, hook=hook, hook_argument="publish:_check")
    assert done.code == 75, done.output
    assert "Run the same command again to go on." in done.output
    assert not place.output.exists()
    check_merged(place)


def test_an_answer_that_a_shard_gave_anew_takes_the_place_of_its_old_one(place: Place) -> None:
    """As when the image that it rests on has changed, or is gone."""
    image = place.folder / "a.png"
    Image.new("RGB", (8, 8), "red").save(image)
    place.table.write_text("question_text,question_image\nWhat?,a.png\nWhy?,\n")
    shard = ("--shard", "0/1")
    assert place.predict(*shard).exit_code == 0
    assert place.merge().exit_code == 0
    image.write_bytes(b"no image any more")
    assert place.predict(*shard).exit_code == 0
    assert place.merge().exit_code == 0
    assert place.predict(*shard, "--verify-inputs").exit_code == 3
    assert place.merge().exit_code == 3
    assert "image_corrupt" in place.output.read_text()
    Image.new("RGB", (8, 8), "blue").save(image)
    assert place.predict(*shard, "--verify-inputs").exit_code == 0
    for _ in range(2):
        assert place.merge().exit_code == 0
        assert "image_corrupt" not in place.output.read_text()
