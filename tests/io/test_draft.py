"""The draft of an output: commits end between rows, whoever asks for them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrag_batch.errors import StorageError
from mmrag_batch.io.draft import COMMIT_ROWS, SPILL, Draft, Paths
from mmrag_batch.io.journal import Begin, Commit, Saved, encode, read_journal
from mmrag_batch.records import Position, Row


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "out.csv")
    paths.state.mkdir()
    begin = Begin({"input": "x"}, ("q",), 0, 100, 100, 1000)
    paths.journal.write_text(encode(begin))
    return paths


def saved(paths: Paths) -> Saved:
    read = read_journal(paths.journal)
    assert read is not None
    return read


def open_draft(paths: Paths) -> Draft:
    return Draft(paths, saved(paths), lambda: None)


def make_row(number: int) -> Row:
    end = Position(10 * (number + 1), number + 2)
    return Row(number=number, line=number + 2, id=str(number), cells={}, end=end)


def test_a_commit_says_what_is_there(paths: Paths) -> None:
    with open_draft(paths) as draft:
        draft.copy(b"header\n")
        for number in range(COMMIT_ROWS + 3):
            draft.add(make_row(number), b"row\n")
        commit = saved(paths).commit
        assert (commit.row, commit.offset, commit.line) == (64, 640, 65)
        assert (commit.ok, commit.size) == (64, 7 + 64 * 4)
        assert paths.partial.stat().st_size == commit.size
        draft.commit()
        assert saved(paths).commit.row == COMMIT_ROWS + 3


def test_a_header_alone_is_no_commit(paths: Paths) -> None:
    with open_draft(paths) as draft:
        draft.copy(b"header\n")
        draft.commit()
    assert saved(paths).commit == Commit(0)


def test_what_is_not_committed_is_cut_off(paths: Paths) -> None:
    with open_draft(paths) as draft:
        draft.add(make_row(0), b"first\n")
        draft.commit()
        draft.add(make_row(1), b"x" * SPILL)  # too much to stay in memory
        assert paths.partial.stat().st_size > SPILL
    with open_draft(paths) as draft:
        assert paths.partial.read_bytes() == b"first\n"
        draft.add(make_row(1), b"second\n")
        draft.commit()
    assert paths.partial.read_bytes() == b"first\nsecond\n"


def test_a_commit_from_another_thread_waits_for_the_end_of_a_row(paths: Paths) -> None:
    """A process that must leave commits from the thread that was told so."""
    with open_draft(paths) as draft:
        committing = threading.Thread(target=draft.commit)

        def before() -> Iterator[bytes]:
            yield b"rows that stay, "
            committing.start()
            time.sleep(0.05)
            yield b"and more of them\n"

        draft.add(make_row(0), b"first\n")
        draft.add(make_row(1), b"second\n", before=before())
        committing.join()
        assert saved(paths).commit.row == 2
    assert paths.partial.read_bytes() == b"first\nrows that stay, and more of them\nsecond\n"


def test_a_partial_file_that_is_deleted_ends_the_run(paths: Paths) -> None:
    with open_draft(paths) as draft:
        paths.partial.unlink()
        draft.add(make_row(0), b"first\n")
        with pytest.raises(StorageError, match="was deleted under the run"):
            draft.commit()
        draft.commit()  # does nothing any more
    assert saved(paths).commit == Commit(0)
