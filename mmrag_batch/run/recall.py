"""Answers that a run has already, though the corpus has changed: the rows without an answer are
searched again, and those with the evidence that they had keep the answer that they had.

It goes through an executor, as asking does, but for the generator, which is not loaded.
"""

import logging
from collections.abc import Iterator
from functools import partial

from mmrag_batch.execute.executor import Executor
from mmrag_batch.factory import load_bundle, open_images, open_retrieval
from mmrag_batch.progress import Progress
from mmrag_batch.records import Row
from mmrag_batch.run.answers import STATUSES
from mmrag_batch.run.job import Job
from mmrag_batch.run.keys import CORPUS, digest_of, found_key_maker, key_maker
from mmrag_batch.run.plan import statuses_to_ask
from mmrag_batch.run.signals import StopSignals
from mmrag_batch.run.store import AnswerStore
from mmrag_batch.run.survey import MISSING, Survey
from mmrag_batch.settings import PredictSettings
from mmrag_batch.table.rows import read_rows

NOTE = "corpora"
"""The note of the versions of a corpus under which answers were kept: the last two of them."""
log = logging.getLogger(__name__)


def recall(
    settings: PredictSettings,
    job: Job,
    store: AnswerStore,
    survey: Survey,
    executor: Executor,
    stop: StopSignals,
) -> int:
    """Keep answers of before for the rows that have none under the present version of the corpus,
    and note it in the survey; how many rows that were. Where no other version was asked, nothing
    is searched."""
    if CORPUS not in job.settings or not survey.missing:
        return 0
    before, now = store.read_note(NOTE) or [], job.settings[CORPUS]
    if now != (before or [None])[-1]:
        store.note(NOTE, [*(one for one in before if one != now), now][-2:])
    if not set(before) - {now}:
        return 0
    log.info("The corpus has changed: %s rows are searched again.", f"{survey.missing:,}")
    key_of, key_of_found = key_maker(job.settings), found_key_maker(job.settings)
    again = statuses_to_ask(settings)
    keys: dict[int, bytes] = {}
    recalled = 0

    def numbers() -> Iterator[int]:
        for number, key, status in survey:
            if status == MISSING:
                keys[number] = key
                yield number

    def keep(row: Row) -> None:
        nonlocal recalled
        key = keys.pop(row.number)
        progress.advance()
        if row.question is None or row.found is None or key_of(row.question) != key:
            return  # it is asked, and then told what is wrong with it
        kept = store.find(key_of_found(row.question, row.found))
        if kept is None or STATUSES[kept.status] in again or kept.images != digest_of(row.images):
            return
        store.keep(key, kept)
        recalled += 1

    bundle = load_bundle(settings, weights=False)
    stages = [partial(open_retrieval, settings, bundle, open_images(settings))]
    rows = read_rows(survey.table, numbers(), names=survey.names)
    with Progress("Searching the corpus", survey.missing, "rows") as progress:
        executor(rows, stages, keep, is_stopped=lambda: stop.cause is not None)
    store.commit()
    if recalled:
        survey.look_again(store, again)
    log.info("%s rows have the evidence that they had.", f"{recalled:,}")
    return recalled
