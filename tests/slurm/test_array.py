"""The chain of examples/slurm on a real Slurm of one node: tasks are preempted, cancelled and
submitted again, and nothing is lost or asked twice."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrag_batch.run.files import Paths
from mmrag_batch.run.shards import Shard, shard_paths
from tests.run.parts import Place, count, questions, wait_for, whole

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).parent / "cluster"
DAEMONS = ("munged", "slurmctld", "slurmd")
ROWS = 400
STUCK = 70
"""The row of a task at which it stays, with a commit behind it, until it is preempted."""
COMMITTED = 64
MERGE = "sbatch --dependency=afterany:$job examples/slurm/merge.sbatch out.csv"
PREDICT = "job=$(sbatch --parsable examples/slurm/predict.sbatch in.csv out.csv)"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.getuid() != 0 or not all(map(shutil.which, DAEMONS)),
        reason="needs root and Slurm: apt-get install slurm-wlm munge",
    ),
]


def run(*command: object, folder: Path, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def slurm() -> Iterator[str]:
    """Where the configuration of a running cluster is."""
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path must be short
    try:
        run(CLUSTER, "start", folder, folder=ROOT)
        yield str(folder / "slurm.conf")
    finally:
        run(CLUSTER, "stop", folder, folder=ROOT)
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """Jobs that are started in a folder of their own, on a table of ROWS questions."""

    def __init__(self, folder: Path, slurm: str, *, broken: int | None = None) -> None:
        self.place = Place(folder)
        self.lines = tuple(questions(ROWS, broken=[] if broken is None else [broken]))
        self.place.write(self.lines)
        (folder / "examples").symlink_to(ROOT / "examples")
        programs = folder / "bin"
        programs.mkdir()
        self._environ = {"SLURM_CONF": slurm, "PATH": f"{programs}:{os.environ['PATH']}"}
        command = programs / "mmrag-batch"
        command.write_text(
            "#!/bin/bash\n"
            'if [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] && [ -n "$FIRST_START" ]; then\n'
            '    export SCRIPTED_ENGINE="$FIRST_START"\n'
            "fi\n"
            f'exec {sys.executable} -m mmrag_batch "$@"\n'
        )
        command.chmod(0o755)

    def run(self, command: str, *, stuck: tuple[int, ...] = (), **environ: str) -> str:
        """Run a line in a shell, as somebody types it. What it submits stays at the rows `stuck`
        until it is started again."""
        environ |= self._environ | self.place.environ() | {"MMRAG_GRACE": "1"}
        if stuck:
            environ |= {"FIRST_START": self.place.environ(hang=stuck)["SCRIPTED_ENGINE"]}
        return run("bash", "-c", command, folder=self.place.folder, **environ)

    def wait_until_committed(self, *tasks: int) -> None:
        for task in tasks:
            store = shard_paths(self.place.output, Shard(task, 4)).store
            wait_for(lambda store=store: count(store) >= COMMITTED)  # type: ignore[misc]

    def wait_until_over(self) -> None:
        wait_for(lambda: not self.run("squeue --noheader"), within=120)

    def preempt(self, job: str) -> None:
        """Take the node for somebody else, until task 0 of a job was started again."""
        self.run("sbatch --partition=urgent --exclusive --output=/dev/null --wrap='sleep 1'")
        wait_for(lambda: self.restarts(job).get(0))

    def restarts(self, job: str) -> dict[int, int]:
        """How often each task of an array was started again."""
        told = self.run(f"scontrol show job {job}")
        pairs = re.findall(r"ArrayTaskId=([0-9]+) .*?Restarts=([0-9]+)", told, re.S)
        return {int(task): int(restarts) for task, restarts in pairs}

    def exit_code(self, job: str) -> int:
        (code,) = re.findall(r"ExitCode=([0-9]+):0", self.run(f"scontrol show job {job}"))
        return int(code)


def test_i03_a_preempted_array_is_merged_to_the_bytes_of_an_unsharded_run(
    slurm: str, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path, slurm)
    place = cluster.place
    job = cluster.run(
        "sbatch --parsable examples/slurm/predict.sbatch in.csv out.csv", stuck=(STUCK,)
    )
    cluster.wait_until_committed(0)
    early = place.merge()
    assert (early.exit_code, place.output.exists()) == (4, False)
    assert "Still at work: shard " in early.stderr
    last = cluster.run(MERGE.replace("sbatch", "sbatch --parsable", 1), job=job)
    cluster.preempt(job)
    cluster.wait_until_over()
    log = (tmp_path / f"mmrag-merge-{last}.log").read_text()
    assert cluster.exit_code(last) == 0, log
    assert place.output.read_bytes() == whole(cluster.lines)
    assert place.asked() == Counter(range(ROWS))
    starts = json.loads(Paths.of(place.output).manifest.read_text())["starts"]
    assert [start["asked"] for start in starts if start["first"] == 0] == [STUCK, 100 - STUCK]


def test_m01_the_chain_ends_with_the_row_that_has_no_answer(slurm: str, tmp_path: Path) -> None:
    """Of four tasks one is preempted, told twice as it gets no time, two are cancelled half way and
    submitted again, and one row cannot be answered."""
    cluster = Cluster(tmp_path, slurm, broken=250)
    place = cluster.place
    stuck = (STUCK, 100 + STUCK, 300 + STUCK)
    job = cluster.run(f"{PREDICT} && echo $job", stuck=stuck, SBATCH_PARTITION="sudden")
    cluster.wait_until_committed(0, 1, 3)
    cluster.run(f"scancel {job}_1 {job}_3")
    again = cluster.run(f"{PREDICT.replace('--parsable', '--parsable --array=1,3')} && echo $job")
    last = cluster.run(f"job={job}:{again}; {MERGE.replace('sbatch', 'sbatch --parsable', 1)}")
    cluster.preempt(job)
    cluster.wait_until_over()
    log = (tmp_path / f"mmrag-merge-{last}.log").read_text()
    assert cluster.exit_code(last) == 3, log
    assert "1 of 400 rows have no answer (bad_choices 1), the first in line 252" in log
    assert place.output.read_bytes() == whole(cluster.lines)
    assert place.asked() == Counter(row for row in range(ROWS) if row != 250)


def test_m03_a_task_asks_for_a_gpu(slurm: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, slurm)
    job = cluster.run("sbatch --parsable --hold examples/slurm/predict.sbatch in.csv out.csv")
    told = cluster.run(f"scontrol show job {job}")
    cluster.run(f"scancel {job}")
    cluster.wait_until_over()
    assert "gres:gpu:1" in told
