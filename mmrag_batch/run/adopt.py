"""Answers from other stores: those of shards, and of a run of all rows."""

import logging
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mmrag_batch.errors import ConfigError, InternalError, OutputError
from mmrag_batch.records import Status
from mmrag_batch.run.answers import STATUSES, Kept, Start
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import NO_KEY, Survey

log = logging.getLogger(__name__)
UNKNOWN = Start(0, 0, 0, {}, 0.0, {}, {})
"""In place of a start that cannot be read."""


def adopt(
    store: AnswerStore, others: Iterable[Path], survey: Survey, again: frozenset[Status]
) -> int:
    """Keep what other stores have answered of a table, where that is better than what `store` has,
    or newer and of the same origin, and note it in the survey; how many answers that were. An
    answer whose status is in `again` is none.
    """
    adopted = 0
    if not (others := list(others)):
        return 0
    with closing(sqlite3.connect("", isolation_level=None)) as sql:  # a file without a name
        sql.execute("CREATE TABLE wanted (key BLOB PRIMARY KEY) WITHOUT ROWID")
        sql.execute("BEGIN")
        wanted = ((mark.key,) for mark in survey if mark.key != NO_KEY)
        sql.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", wanted)
        for path in others:
            try:
                with AnswerStore(path) as other:
                    adopted += _adopt_from(other, store, sql, again)
            except (ConfigError, InternalError, OutputError) as error:
                log.warning("Passed over: %s", error)
    if adopted:
        store.commit()
        survey.look_again(store, again)
    return adopted


def _adopt_from(
    other: AnswerStore, store: AnswerStore, sql: sqlite3.Connection, again: frozenset[Status]
) -> int:
    theirs = {start.id: start for start in other.starts()}
    ours = {start.id: start for start in store.starts()}
    numbers = {UNKNOWN.origin: 0} | {start.origin: start.id for start in ours.values()}
    adopted = 0
    for key, kept in other.scan():
        if STATUSES[kept.status] in again:
            continue
        if sql.execute("SELECT 1 FROM wanted WHERE key = ?", (key,)).fetchone() is None:
            continue
        start, mine = theirs.get(kept.start, UNKNOWN), store.find(key)
        if mine is None or _supersedes(kept, start, mine, ours.get(mine.start, UNKNOWN)):
            if start.origin not in numbers:
                copy = replace(start)
                numbers[start.origin] = store.add(copy)
                ours[copy.id] = copy
            store.keep(key, kept._replace(start=numbers[start.origin]))
            adopted += 1
    return adopted


def _supersedes(kept: Kept, start: Start, mine: Kept, my_start: Start) -> bool:
    """Whether an answer is to be taken in place of ours: a later one of the same store, as when
    its images have changed, or else a better one."""
    if start.origin[0] == my_start.origin[0] != UNKNOWN.origin[0]:
        return start.origin[1] > my_start.origin[1]
    return kept.status < mine.status
