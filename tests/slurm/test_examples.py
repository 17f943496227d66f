"""What the scripts of examples/slurm say and do, where no Slurm is needed to see it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.test_array import MERGE, PREDICT, ROOT

EXAMPLES = ROOT / "examples" / "slurm"


def test_m01_the_page_and_the_example_show_the_chain_that_is_tested() -> None:
    example = (EXAMPLES / "merge.sbatch").read_text()
    assert f"#     {PREDICT}\n#     {MERGE}\n" in example
    page = (ROOT / "docs" / "durable-runs.md").read_text()
    assert f"    {PREDICT}\n    {MERGE}\n" in page


def test_m03_a_task_asks_for_a_gpu() -> None:
    lines = (EXAMPLES / "predict.sbatch").read_text().splitlines()
    assert "#SBATCH --gres=gpu:1" in lines
    assert not any("gres" in line for line in (EXAMPLES / "merge.sbatch").read_text().splitlines())


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (75, None, True),
        (75, 19, True),
        (75, 20, False),
        (0, None, False),
        (3, None, False),
        (4, 2, False),
        (137, 2, False),
    ],
)
def test_a_task_queues_itself_again_when_it_was_stopped_and_not_too_often(
    tmp_path: Path, code: int, restarts: int | None, requeued: bool
) -> None:
    """With an srun that ends with a code and an scontrol that writes down what it is told."""
    for name, line in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" >>told')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environ |= {} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}
    words = ("bash", EXAMPLES / "predict.sbatch", "in.csv", "out.csv")
    done = subprocess.run(words, cwd=tmp_path, env=environ, timeout=60)
    assert done.returncode == code
    told = tmp_path / "told"
    assert told.exists() == requeued
    assert not requeued or told.read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("script", "image", "says"),
    [
        ("predict", None, "srun mmrag-batch predict"),
        ("predict", "my image.sif", "srun apptainer run --nv my image.sif predict"),
        ("merge", None, "mmrag-batch merge"),
        ("merge", "my image.sif", "apptainer run my image.sif merge"),
    ],
)
def test_a_task_runs_in_the_image_that_is_named(
    tmp_path: Path, script: str, image: str | None, says: str
) -> None:
    for name in ("srun", "apptainer", "mmrag-batch"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **({"IMAGE": image} if image else {})}
    words = ("bash", EXAMPLES / f"{script}.sbatch", "in.csv", "out.csv")
    done = subprocess.run(words, env=environ, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{says} in.csv out.csv\n")
