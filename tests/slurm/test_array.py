"""An array on a real Slurm of one node: tasks are preempted half way, nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).parent / "cluster"
DAEMONS = ("munged", "slurmctld", "slurmd")
ROWS = 800
SLOWLY = '{"delay": 0.02}'
"""How the scripted engine answers, so that a task is still at work when it is preempted."""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.getuid() != 0 or not all(map(shutil.which, DAEMONS)),
        reason="needs root and Slurm: apt-get install slurm-wlm munge",
    ),
]


def run(*command: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The variables that lead to a running cluster, and to our command."""
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path must be short
    try:
        run(CLUSTER, "start", folder, folder=ROOT)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    finally:
        run(CLUSTER, "stop", folder, folder=ROOT)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(holds: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.2)


class Cluster:
    """Jobs that are started in one folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def submit(self, *arguments: object) -> str:
        command = ("sbatch", "--parsable", *arguments)
        return run(*command, folder=self._folder, **self._environment)

    def restarts(self, job: str) -> dict[int, int]:
        """How often each task of an array was started again."""
        told = run("scontrol", "show", "job", job, folder=self._folder, **self._environment)
        pairs = re.findall(r"ArrayTaskId=([0-9]+) .*?Restarts=([0-9]+)", told, re.S)
        return {int(task): int(restarts) for task, restarts in pairs}

    def is_over(self) -> bool:
        return not run("squeue", "--noheader", folder=self._folder, **self._environment)


def test_i03_a_preempted_array_is_merged_to_the_bytes_of_an_unsharded_run(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    lines = [f'What costs {n}?,"[""a"", ""b""]"' for n in range(ROWS)]
    (tmp_path / "in.csv").write_text("\n".join(["question_text,answer_choices", *lines, ""]))
    predict = (sys.executable, "-m", "mmrag_batch", "predict", "in.csv")
    merge = (sys.executable, "-m", "mmrag_batch", "merge", "out.csv")
    run(*predict, "whole.csv", "--engine", "scripted", folder=tmp_path)

    cluster = Cluster(tmp_path, slurm | {"SCRIPTED_ENGINE": SLOWLY})
    script = ROOT / "examples" / "slurm" / "predict.sbatch"
    job = cluster.submit(script, "in.csv", "out.csv", "--engine", "scripted")
    wait_for(lambda: has_rows(tmp_path / "out.shard-0-of-4.csv.partial"), 60, "a commit")
    cluster.submit("--partition=urgent", "--exclusive", "--wrap=sleep 1")
    wait_for(lambda: cluster.restarts(job).get(0), 30, "a preempted task")

    early = subprocess.run(merge, cwd=tmp_path, capture_output=True, text=True)
    assert (early.returncode, (tmp_path / "out.csv").exists()) == (4, False)
    assert re.search("not finished yet: shard .*0/4", early.stderr)
    last = ROOT / "examples" / "slurm" / "merge.sbatch"
    cluster.submit(f"--dependency=afterok:{job}", last, "out.csv")
    wait_for(cluster.is_over, 120, "the end of every job")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    rows = [start["row"] for start in manifest_of(tmp_path / "out.csv")["starts"]]
    assert rows[0] == 0
    assert 0 < rows[1] < ROWS / 4, "the task that was preempted began anew"


def manifest_of(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(Path(f"{output}.manifest.json").read_text())
    return manifest


def has_rows(partial: Path) -> bool:
    """Whether more than the header of a partial output is on disk."""
    return partial.exists() and partial.read_bytes().count(b"\n") > 1
