"""The SQLite file of an answer store: its tables, whose it is, and what its failures mean."""

import os
import sqlite3
from functools import cache
from pathlib import Path

from mmrag_batch.errors import InternalError, MmragError, OutputError, StorageError
from mmrag_batch.run.files import check_ours

APPLICATION = 0x6D6D7267
"""How SQLite's header says whose file it is."""
SQLITE = b"SQLite format 3\0"
JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""How SQLite's own journal begins (sqlite.org/fileformat.html, section 3)."""
FORMAT = 1

SCHEMA = f"""
CREATE TABLE answers (place INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, start INTEGER NOT NULL,
    status INTEGER NOT NULL, images BLOB NOT NULL, answer BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE starts (id INTEGER PRIMARY KEY, start BLOB NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT}"""
_COLUMNS = "key, start, status, images, answer, checksum"
SCAN = f"SELECT place, {_COLUMNS} FROM answers WHERE place > ? ORDER BY place LIMIT ?"  # noqa: S608


@cache
def find(count: int) -> str:
    """The statement that finds so many answers: each with the key that stands beside it, as `SCAN`
    reads it, and not with the one in the index."""
    keys = ", ".join("?" * count)
    places = f"SELECT place FROM answers WHERE key IN ({keys})"  # noqa: S608
    return f"SELECT {_COLUMNS} FROM answers WHERE place IN ({places})"  # noqa: S608


@cache
def keep(count: int) -> str:
    """The statement that keeps so many answers: one, as each waits for the interpreter's lock."""
    places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * count)
    return f"INSERT OR REPLACE INTO answers ({_COLUMNS}) VALUES {places}"  # noqa: S608


class UnbegunError(OutputError):
    """A store that is just being made, or whose maker has died before it was."""


class DamagedError(InternalError):
    """Pages of a store cannot be read."""


def check_store(path: Path) -> bool:
    """Whether there is a store. Raises OutputError for anything at its place, or at that of
    SQLite's journal, that no run has made."""
    exists = check_ours(path)
    journal = journal_of(path)
    if check_ours(journal):
        head = _read_head(journal, len(JOURNAL))
        if not JOURNAL.startswith(head.rstrip(b"\0")):  # a write may have been torn
            raise OutputError(f"{journal} is no journal of SQLite's. Move it away.")
    if os.path.lexists(wal := path.with_name(path.name + "-wal")):
        raise OutputError(f"{wal} is no file of a run, and SQLite would take it up. Move it away.")
    head = _read_head(path, 100) if exists else b""
    if head.strip(b"\0") and not (
        head.startswith(SQLITE) and head[68:72] == APPLICATION.to_bytes(4)
    ):
        raise OutputError(
            f"{path} is no answer store, or its beginning is damaged. Move it away to ask every "
            "row again, or choose another output."
        )
    return exists


def journal_of(path: Path) -> Path:
    """Where SQLite keeps what would undo a commit that it has begun."""
    return path.with_name(path.name + "-journal")


def _read_head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except FileNotFoundError:  # who is at work there has removed it since
        return b""
    except OSError as error:
        raise OutputError(f"{path} cannot be opened ({error.strerror}).") from None


FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)
"""What reading and writing a store may raise: the last where SQLite quotes damaged bytes."""
_DISK = (
    *("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_LOCKED"),
    *("SQLITE_NOLFS", "SQLITE_NOMEM", "SQLITE_PERM", "SQLITE_PROTOCOL", "SQLITE_READONLY"),
)
"""Codes that say nothing of what is in the file; all others do (sqlite.org/rescode.html)."""


def explain(path: Path, error: sqlite3.Error | OSError | UnicodeDecodeError) -> MmragError:
    """What a failure means: a disk that fails, or a file that cannot be read as it is."""
    if isinstance(error, OSError):
        text = error.strerror
    elif getattr(error, "sqlite_errorname", "").startswith(_DISK):  # Python's own errors have none
        text = str(error)
    else:
        return DamagedError(f"{path} is damaged ({error}). Run the same command again.")
    return StorageError(
        f"{path}: {text}. Every answer committed before is safe. Make room or mend the disk, then "
        "run the same command again."
    )
