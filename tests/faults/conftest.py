"""What tests of faults share: a table, and what a run without faults writes."""

import signal
from pathlib import Path

import pytest

from tests.faults.harness import predict, write_table


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard() -> None:
    """A shell starts what it puts in the background with SIGINT ignored, and runs inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """The output of runs of so many rows that nothing happened to."""
    outputs = {}
    for rows in (200, 2000):
        folder = tmp_path_factory.mktemp("whole")
        write_table(folder / "in.csv", rows)
        assert predict(folder, "--quiet") == 0
        outputs[rows] = (folder / "out.csv").read_bytes()
    return outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of 200 rows."""
    write_table(tmp_path / "in.csv", 200)
    return tmp_path
