"""What the tests of training share: a small demo world."""

from pathlib import Path

import pytest

from mmrag_batch.train.demo_world import write_world


@pytest.fixture(scope="session")
def demo_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a demo world of 40 rows, with its images beside it."""
    return write_world(tmp_path_factory.mktemp("world"), rows=40, seed=1)
