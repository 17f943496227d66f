"""The benchmark of QLoRA, cut short: it must not only run but teach."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^\| (?:base|QLoRA.*) \| ([0-9.]+) \| ([0-9.]+) to ([0-9.]+) \|", re.M)


def test_an_adapter_trained_in_4_bits_improves_the_base_that_it_is_merged_into() -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "benchmarks.qlora"]
    command += ["--rows", "2500", "--steps", "100", "--asked", "600"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,  # a minute on two idle cores
    )
    assert done.returncode == 0, done.stderr
    before, after = [tuple(map(float, found)) for found in LINE.findall(done.stdout)]
    assert after[0] >= before[0] + 0.15, done.stdout
    assert after[1] > before[2], done.stdout  # the intervals do not touch
