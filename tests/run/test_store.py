"""The answer store: what is kept is found, what is damaged is not there, what is not ours is left
alone."""

import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrag_batch.errors import ConfigError, InternalError, LockedError, OutputError, StorageError
from mmrag_batch.records import Answer, Problem, Status, TextProbability
from mmrag_batch.run import database
from mmrag_batch.run import store as stores
from mmrag_batch.run.answers import Kept, Start, checksum, read_kept, to_answer, to_kept
from mmrag_batch.run.database import DamagedError, explain
from mmrag_batch.run.mending import mending, move_aside
from mmrag_batch.run.store import COMMIT_ROWS, AnswerStore

STATUSES: tuple[Status, ...] = ("ok", "degraded", "error")


def nobody() -> None:
    """The lock is ours."""


def key(number: int) -> bytes:
    return random.Random(number).randbytes(16)


def kept(number: int, *, status: int = 0, start: int = 1) -> Kept:
    return Kept(start, status, b"", b'["answer %d"]' % number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.csv.store"


@pytest.fixture
def store(path: Path) -> Iterator[AnswerStore]:
    with AnswerStore(path, nobody) as opened:
        yield opened


def fill(path: Path, count: int) -> dict[bytes, Kept]:
    answers = {key(number): kept(number) for number in range(count)}
    with AnswerStore(path, nobody) as opened:
        for name, answer in answers.items():
            opened.keep(name, answer)
        opened.commit()
    return answers


ANSWERS = st.builds(
    Answer,
    status=st.sampled_from(STATUSES),
    prediction=st.none() | st.text(),
    index=st.none() | st.integers(0, 25),
    probabilities=st.lists(st.floats(0, 1), max_size=4).map(tuple),
    evidence=st.lists(st.tuples(st.text(), st.floats(-50, 50)), max_size=3).map(tuple),
    problems=st.lists(st.builds(Problem, st.text(), st.text()), max_size=2).map(tuple),
    text_probability=st.none() | st.builds(TextProbability, st.floats(0, 1), st.floats(0, 1)),
)


@given(ANSWERS)
def test_an_answer_is_read_as_it_was_kept(answer: Answer) -> None:
    assert to_answer(to_kept(answer, start=1, images=b"")) == answer


@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_an_answer_with_any_other_byte_is_none(place: int, flip: int) -> None:
    whole = Kept(7, 1, b"0123456789abcdef", b'["an answer"]')
    signed = checksum(key(1), whole)
    assert read_kept(key(1), *whole, signed) == whole
    column = place % 3
    values = [bytearray(whole.images), bytearray(whole.answer), bytearray(signed)]
    values[column][place % len(values[column])] ^= flip
    images, text, other = map(bytes, values)
    assert read_kept(key(1), 7, 1, images, text, other) is None
    assert read_kept(key(1), 8, 1, *whole[2:], signed) is None
    assert read_kept(key(1), 7, 0, *whole[2:], signed) is None
    assert read_kept(key(2), *whole, signed) is None
    assert read_kept(key(1), None, "1", 2, None, signed) is None


def test_what_is_kept_is_found_before_and_after_its_commit(store: AnswerStore, path: Path) -> None:
    store.keep(key(1), kept(1))
    assert store.find(key(1)) == kept(1)
    assert store.is_empty()
    with AnswerStore(path) as other:
        assert other.find(key(1)) is None
    store.commit()
    assert store.find(key(1)) == kept(1)
    assert not store.is_empty()
    store.keep(key(1), kept(2, start=2))
    assert store.find(key(1)) == kept(2, start=2)
    store.commit()
    with AnswerStore(path) as other:
        assert list(other.scan()) == [(key(1), kept(2, start=2))]


def test_answers_are_committed_by_number(store: AnswerStore) -> None:
    for number in range(COMMIT_ROWS):
        assert store.is_empty()
        store.keep(key(number), kept(number))
    assert not store.is_empty()
    assert store.revision > 0


def test_an_answer_is_committed_in_time_though_no_other_comes(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "COMMIT_SECONDS", 0.01)
    committed = threading.Event()
    commit = store.commit

    def tell() -> None:
        commit()
        committed.set()

    monkeypatch.setattr(store, "commit", tell)
    store.keep(key(1), kept(1))
    assert committed.wait(60)
    assert not store.is_empty()


def test_leaving_a_store_commits_nothing_and_leaves_one_file(path: Path) -> None:
    with AnswerStore(path, nobody) as opened:
        opened.keep(key(1), kept(1))
    with AnswerStore(path) as opened:
        assert opened.is_empty()
    assert list(path.parent.iterdir()) == [path]


def test_a_store_whose_lock_is_gone_writes_nothing_more(path: Path) -> None:
    ours = True

    def check() -> None:
        if not ours:
            raise LockedError("it is another's")

    with AnswerStore(path, check) as opened:
        opened.keep(key(1), kept(1))
        opened.commit()
        ours = False
        opened.keep(key(2), kept(2))
        for _ in range(2):
            with pytest.raises(LockedError):
                opened.commit()
        ours = True
        with pytest.raises(LockedError):
            opened.keep(key(3), kept(3))
    with AnswerStore(path) as opened:
        assert [name for name, _ in opened.scan()] == [key(1)]


def test_a_store_that_was_replaced_is_not_written(store: AnswerStore, path: Path) -> None:
    start = Start(0, 1, 0, dict.fromkeys(STATUSES, 0), 0.0, {}, {})
    store.begin(start)
    path.rename(path.with_name("elsewhere"))
    path.touch()
    store.keep(key(1), kept(1))
    with pytest.raises(StorageError):
        store.commit()


def test_starts_are_numbered_and_told_as_far_as_they_came(store: AnswerStore, path: Path) -> None:
    for number in (1, 2):
        start = Start(0, 9, 3, dict.fromkeys(STATUSES, 0), 1.5, {"pid": 7}, {"python": "3"})
        store.begin(start)
        assert start.id == number
        start.rows["ok"] += number
        store.keep(key(number), kept(number))
        store.commit()
    with AnswerStore(path) as other:
        assert [one.rows["ok"] for one in other.starts()] == [1, 2]
        assert [one.id for one in other.starts()] == [1, 2]


def test_notes_are_read_as_they_were_and_damaged_ones_are_none(path: Path) -> None:
    with AnswerStore(path, nobody) as store:
        assert store.read_note("settings") is None
        store.note("settings", {"top_k": 3, "é": None})
        assert store.read_note("settings") == {"top_k": 3, "é": None}
    with sqlite3.connect(path) as sql:
        sql.execute("UPDATE notes SET note = replace(note, '3', '4')")
    sql.close()
    with AnswerStore(path) as store:
        assert store.read_note("settings") is None


def test_d05_a_store_of_another_format_is_refused_by_its_number(path: Path) -> None:
    fill(path, 1)
    with sqlite3.connect(path) as sql:
        sql.execute("PRAGMA user_version = 9")
    sql.close()
    with pytest.raises(ConfigError, match="has format 9, this version reads 1"):
        AnswerStore(path, nobody)


@pytest.mark.parametrize("content", [b"a stranger's text", b"SQLite format 3\0" + bytes(200)])
def test_j12_a_file_that_is_no_store_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is no answer store"):
        AnswerStore(path, nobody)
    assert path.read_bytes() == content


def test_j12_a_stranger_in_the_place_of_sqlites_journal_is_left_alone(path: Path) -> None:
    journal = path.with_name(path.name + "-journal")
    journal.write_text("precious")
    with pytest.raises(OutputError, match="is no journal"):
        AnswerStore(path, nobody)
    assert journal.read_text() == "precious"


@pytest.mark.parametrize("seed", range(12))
def test_what_lies_on_damaged_pages_is_lost_and_nothing_else(path: Path, seed: int) -> None:
    """Five kilobytes of a store of 3,000 answers are overwritten."""
    answers = fill(path, 3000)
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    place = chance.randrange(4096, len(data) - 5000)
    data[place : place + 5000] = chance.randbytes(5000)
    path.write_bytes(data)

    def saved() -> dict[bytes, Kept]:
        with AnswerStore(path, nobody) as opened:
            opened.check()
            return {name: opened.find(name) or pytest.fail("lost") for name, _ in opened.scan()}

    left = mending(path, saved)
    assert left.items() <= answers.items()
    assert len(left) > 2800
    assert path.with_name(path.name + ".damaged-1").read_bytes() == bytes(data)


def test_a_damage_that_sqlite_quotes_is_a_damage(path: Path) -> None:
    """Python cannot decode the message, and raises that instead."""
    fill(path, 50)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE answers", b"CREATE TABLE \xc8nswers", 1))
    with pytest.raises(DamagedError, match=r"store is damaged \(.*Run the same command again"):
        AnswerStore(path, nobody)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("SQLITE_FULL", StorageError),
        ("SQLITE_IOERR_FSYNC", StorageError),
        ("SQLITE_READONLY_DBMOVED", StorageError),
        ("SQLITE_CORRUPT_INDEX", DamagedError),
        ("SQLITE_TOOBIG", DamagedError),  # a length that is damaged
        ("SQLITE_MISMATCH", DamagedError),
    ],
)
def test_a_failure_is_the_disks_or_the_files(path: Path, code: str, kind: type[Exception]) -> None:
    error = sqlite3.DatabaseError("it fails")
    error.sqlite_errorname = code
    assert type(explain(path, error)) is kind


def test_a_store_of_which_nothing_can_be_read_is_not_taken_for_an_empty_one(path: Path) -> None:
    fill(path, 50)
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(len(data) - 100))

    def check() -> None:
        with AnswerStore(path, nobody) as opened:
            opened.check()

    with pytest.raises(InternalError, match=r"No answer of .* can be read"):
        mending(path, check)
    assert path.read_bytes() == data[:100] + bytes(len(data) - 100)


def test_a_mended_store_gets_its_name_though_whoever_mended_it_died(path: Path) -> None:
    answers = fill(path, 5)
    path.rename(path.with_name(path.name + ".mended"))

    def read() -> dict[bytes, Kept]:
        with AnswerStore(path) as opened:
            return dict(opened.scan())

    assert mending(path, read) == answers


def test_stores_are_moved_aside_under_names_of_their_own(path: Path) -> None:
    assert move_aside(path) is None
    for number in (1, 2):
        fill(path, number)
        assert move_aside(path) == path.with_name(f"{path.name}.old-{number}")
    assert not path.exists()


def test_damage_is_an_error_of_its_own(path: Path) -> None:
    fill(path, 500)
    data = path.read_bytes()
    path.write_bytes(data[:-8192])
    with pytest.raises(DamagedError), AnswerStore(path, nobody) as opened:
        opened.check()


def test_a_journal_that_goes_while_it_is_looked_at_is_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the task at work on the store commits just then."""
    fill(path, 3)
    monkeypatch.setattr(database, "check_ours", lambda _: True)
    assert not path.with_name(path.name + "-journal").exists()
    assert database.check_store(path)
