"""What tests of faults share: a table, and what a run without faults writes."""

from pathlib import Path

import pytest

from tests.faults.harness import predict, write_table


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """The output of runs of so many rows that nothing happened to."""
    outputs = {}
    for rows in (50, 200, 600):
        folder = tmp_path_factory.mktemp("whole")
        write_table(folder / "in.csv", rows)
        assert predict(folder, "--quiet") == 0
        outputs[rows] = (folder / "out.csv").read_bytes()
    return outputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of 200 rows."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_table(folder / "in.csv", 200)
    return folder
