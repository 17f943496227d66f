"""The answer store: the answers of an output, each under the key of all that it depends on.

One SQLite file with a rollback journal: no shared memory, so network file systems serve, and every
commit is on disk when it returns. An answer that does not pass its checksum is not there. Only the
run that holds the lock writes; others read between its commits.
"""

import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, Self, cast

from mmrag_batch.errors import ConfigError, MmragError, OutputError, StorageError
from mmrag_batch.run import database
from mmrag_batch.run.answers import Kept, Start, checksum, hash_note, read_kept
from mmrag_batch.run.database import FAILURES, DamagedError, UnbegunError, check_store, explain

COMMIT_ROWS = 64
COMMIT_SECONDS = 5.0
"""An answer is committed with as many others, or after so many seconds."""
PATIENCE = 60.0
"""Seconds that a commit waits for who reads."""
BATCH = 500
"""Answers that are read at once, so that no commit waits long."""
LOOK_UP = 64
"""Keys to look up at once: quicker than alone, and no more rows than stages hold."""


class AnswerStore:
    """The store at `path`; a context manager. Thread-safe.

    With `check_lock`, which raises when this run may no longer write, the store is made if it is
    not there; without it, it is only read. Raises OutputError for a file that is no store,
    ConfigError for one of another format, DamagedError, and StorageError where the disk fails,
    after which nothing more is written.
    """

    def __init__(self, path: Path, check_lock: Callable[[], None] | None = None) -> None:
        self.path = path
        self.start: Start | None = None
        """The process that works here."""
        self._check_lock = check_lock
        self._lock = threading.RLock()
        self._pending: dict[bytes, Kept] = {}
        self._timer: threading.Timer | None = None
        self._revision = 0  # of the last commit here
        self._failed: MmragError | None = None
        if not check_store(path) and check_lock is None:
            raise OutputError(f"There is no store {path}.")
        with self._storing():
            self._sql = sqlite3.connect(
                path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._unread = self._sql.cursor()
            self._sql.text_factory = bytes
            if check_lock is None:  # else SQLite reads nothing of a file that was cut short
                self._sql.execute("PRAGMA writable_schema = ON")
            self._check_format()
            self._inode = path.stat().st_ino
            self._has_answers = self._may_have_answers()
            if check_lock is not None:
                self._sql.execute("PRAGMA synchronous = FULL")
                self._sql.execute("PRAGMA journal_mode = PERSIST")
                # As long as a statement is not at its end, SQLite keeps the journal open. Else it
                # opens it for each commit, and syncs the folder.
                self._unread.execute("SELECT 1 FROM notes")

    def _check_format(self) -> None:
        (version,) = self._sql.execute("PRAGMA user_version").fetchone()
        if version == 0 and self._check_lock is not None:
            with self._transaction():
                for statement in database.SCHEMA.split(";"):
                    self._sql.execute(statement)
                self._put("name", secrets.token_hex(8))
        elif version == 0:
            raise UnbegunError(f"{self.path} holds nothing yet: the run that made it has died.")
        elif version != database.FORMAT:
            raise ConfigError(
                f"{self.path} has format {version}, this version reads {database.FORMAT}. Use the "
                "version that wrote it, or add `--fresh` to ask every row again."
            )

    def _may_have_answers(self) -> bool:
        try:
            return self._sql.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None
        except FAILURES as error:
            if self._check_lock is None and isinstance(explain(self.path, error), DamagedError):
                return True  # `scan` finds what can still be read
            raise

    def check(self) -> None:
        """Raise DamagedError unless every page can be read, and every answer found by its key."""
        with self._storing():
            (told,) = self._sql.execute("PRAGMA integrity_check(1)").fetchone()
            if told != b"ok":
                raise DamagedError(f"{self.path} is damaged: {told.decode(errors='replace')}.")

    def is_empty(self) -> bool:
        """Whether it holds no answer: such a store protects nothing."""
        return not self._has_answers

    def find(self, key: bytes) -> Kept | None:
        """The answer under a key, committed or not; None where there is none that is whole."""
        return self.find_all([key]).get(key)

    def find_all(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """The same of several keys (LOOK_UP or fewer): those answers that there are."""
        wanted = set(keys)
        with self._storing():
            answers = {key: self._pending[key] for key in wanted if key in self._pending}
            if self._has_answers:
                for key, *columns in self._sql.execute(database.find(len(keys)), keys):
                    if key in wanted and (kept := read_kept(key, *columns)) is not None:
                        answers.setdefault(key, kept)
        return answers

    def scan(self) -> Iterator[tuple[bytes, Kept]]:
        """Every committed answer that is whole. What lies on damaged pages is passed over."""
        place, last = 0, self._last_place()
        while place < last:
            try:
                rows = self._rows_after(place, BATCH)
            except DamagedError:
                rows = []
                for at in range(place, place + BATCH):
                    with suppress(DamagedError):
                        rows += [row for row in self._rows_after(at, 1) if row[0] == at + 1]
                place += BATCH
            else:
                place = rows[-1][0] if rows else last
            for _, key, *columns in rows:
                if (kept := read_kept(key, *columns)) is not None:
                    yield key, kept

    def _last_place(self) -> int:
        with suppress(DamagedError), self._storing():
            return self._sql.execute("SELECT max(place) FROM answers").fetchone()[0] or 0
        return self.path.stat().st_size // len(database.JOURNAL)

    def _rows_after(self, place: int, count: int) -> list[tuple[Any, ...]]:
        with self._storing():
            return self._sql.execute(database.SCAN, (place, count)).fetchall()

    def keep(self, key: bytes, kept: Kept) -> None:
        """Keep an answer under a key, in place of one that may be there; commits at times."""
        with self._lock:
            self._raise_failure()
            self._pending[key] = kept
            if len(self._pending) >= COMMIT_ROWS:
                self.commit()
            elif self._timer is None:
                self._timer = threading.Timer(COMMIT_SECONDS, self._commit_late)
                self._timer.daemon = True
                self._timer.start()

    def commit(self) -> None:
        """Put every answer so far on disk, and how far the start is."""
        with self._lock:
            self._raise_failure()
            if not self._pending:
                return
            with self._transaction():
                rows = [(key, *kept, checksum(key, kept)) for key, kept in self._pending.items()]
                self._sql.execute(database.keep(len(rows)), tuple(chain.from_iterable(rows)))
                self._has_answers = True
                self._revision = (self._revision or self.revision or secrets.randbits(48)) + 1
                self._put("revision", self._revision)
                if self.start is not None:
                    self._write(self.start)
            self._pending.clear()

    def _commit_late(self) -> None:
        with self._lock, suppress(MmragError):  # which is raised again for the next one who comes
            self._timer = None
            self.commit()

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed

    def add(self, start: Start, *, number: int | None = None) -> int:
        """Note a process that gave answers, under a `number` or the next one; that number."""
        with self._transaction():
            row = self._sql.execute("INSERT OR REPLACE INTO starts VALUES (?, x'')", (number,))
            start.id = cast(int, row.lastrowid)
            if not start.origin[0]:
                start.origin = (self.read_note("name") or secrets.token_hex(8), start.id)
            self._write(start)
        return start.id

    def begin(self, start: Start) -> None:
        """Note that a process is at work; each commit from now on says how far it is."""
        self.add(start)
        self.start = start

    def end(self) -> None:
        """Note how far the process came, all of it committed."""
        self.commit()
        if self.start is not None:
            with self._transaction():
                self._write(self.start)
            self.start = None

    def _write(self, start: Start) -> None:
        values = {field.name: getattr(start, field.name) for field in fields(start)}
        text = json.dumps(values).encode()
        self._sql.execute("UPDATE starts SET start = ? WHERE id = ?", (text, start.id))

    def starts(self) -> list[Start]:
        """Every start, in order; those that cannot be read are left out."""
        with self._storing():
            rows = self._sql.execute("SELECT id, start FROM starts ORDER BY id").fetchall()
        starts = []
        for number, text in rows:
            with suppress(TypeError, ValueError, KeyError):
                values = json.loads(text)
                values |= {"id": number, "origin": tuple(values["origin"])}
                starts.append(Start(**values))
        return starts

    def note(self, name: str, note: object) -> None:
        """Keep a note (JSON) under a name."""
        with self._transaction():
            self._put(name, note)

    def _put(self, name: str, note: object) -> None:
        text = json.dumps([note, hash_note(name, note)])
        self._sql.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text.encode()))

    def read_note(self, name: str) -> Any:
        """The note under a name; None where there is none that is whole."""
        with self._storing():
            row = self._sql.execute("SELECT note FROM notes WHERE name = ?", (name,)).fetchone()
        try:
            note, expected = json.loads(row[0]) if row is not None else (None, None)
            return note if expected == hash_note(name, note) else None
        except (TypeError, ValueError):
            return None

    def note_names(self) -> list[str]:
        """The names of all notes that are whole."""
        with self._storing():
            rows = self._sql.execute("SELECT name FROM notes ORDER BY name").fetchall()
        names = [str(name, "utf-8", "replace") for (name,) in rows if isinstance(name, bytes)]
        return [name for name in names if self.read_note(name) is not None]

    @property
    def revision(self) -> int:
        """Goes up with each commit of answers, from a number that no other store begins with."""
        return self.read_note("revision") or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaving the context commits nothing."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._unread.close()  # or the file would stay locked for this process
            if self._check_lock is not None and self._failed is None:
                with suppress(sqlite3.Error):  # who reads now leaves an empty journal behind
                    self._sql.execute("PRAGMA journal_mode = DELETE")
            self._sql.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._raise_failure()
            assert self._check_lock is not None, "the store was opened to be read"
            try:
                with self._storing():
                    self._sql.execute("BEGIN IMMEDIATE")
                    self._check_lock()
                    yield
                    if self.start is not None and self.path.stat().st_ino != self._inode:
                        raise StorageError(f"{self.path} was replaced under the run.")
                    self._sql.execute("COMMIT")
            except BaseException as error:
                if isinstance(error, MmragError):
                    self._failed = error  # nobody knows what the disk has: write no more
                if self._sql.in_transaction:
                    with suppress(sqlite3.Error):
                        self._sql.rollback()
                raise

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Turns what SQLite and the disk say into errors of ours."""
        with self._lock:
            try:
                yield
            except FAILURES as error:
                raise explain(self.path, error) from error
