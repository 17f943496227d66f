"""Which rows are whose, which task of an array has which shard, and where shards are written."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrag_batch.errors import ConfigError
from mmrag_batch.scale.shards import Shard, find_shard, find_shards, shard_path, shard_rows


@given(rows=st.integers(0, 10**12), count=st.integers(1, 200))
def test_shards_cover_every_row_once_and_in_order(rows: int, count: int) -> None:
    parts = [shard_rows(rows, Shard(index, count)) for index in range(count)]
    assert parts[0].start == 0
    assert parts[-1].stop == rows
    assert all(part.stop == after.start for part, after in pairwise(parts))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_shards_all_rows_are_ones_own() -> None:
    assert find_shard(None, {}) is None
    assert find_shard("0/1", {}) is None
    assert shard_rows(7, None) == range(7)
    assert shard_path(Path("a/out.csv"), None) == Path("a/out.csv")


def test_a_shard_is_told_by_its_flag() -> None:
    assert find_shard("2/4", {}) == Shard(2, 4)
    with pytest.raises(ConfigError, match=r"--shard 4/4: shards of 4 go from 0 to 3\."):
        find_shard("4/4", {})


def array(task: int, first: int, last: int, step: int = 1) -> dict[str, str]:
    """What Slurm sets for a task of --array=first-last:step."""
    count = (last - first) // step + 1
    values = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_a_task_of_an_array_has_the_shard_of_its_place() -> None:
    assert find_shard(None, array(2, 0, 3)) == Shard(2, 4)
    assert find_shard(None, array(1, 1, 4)) == Shard(0, 4)
    assert find_shard(None, array(6, 0, 9, 3)) == Shard(2, 4)
    assert find_shard(None, array(5, 5, 5)) is None
    assert find_shard("0/2", array(2, 0, 3)) == Shard(0, 2)


def test_an_array_with_gaps_is_refused() -> None:
    gaps = array(7, 1, 7) | {"SLURM_ARRAY_TASK_COUNT": "3"}  # --array=1,5,7
    with pytest.raises(ConfigError, match="--array=0-2, or give --shard"):
        find_shard(None, gaps)


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "v1.2.csv"])
def test_shards_are_written_beside_the_output_and_found_again(tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    for index in (0, 2):
        shard = shard_path(output, Shard(index, 3))
        assert shard.parent == tmp_path
        assert shard.suffixes[-1] == output.suffixes[-1]
        shard.with_name(shard.name + ".state").mkdir()
    shard_path(output, Shard(1, 2)).touch()
    shard_path(tmp_path / "other.csv", Shard(1, 3)).touch()
    output.touch()
    assert find_shards(output) == {3: {0, 2}, 2: {1}}
