"""What stands for the models of a run where thousands of commands must cost a few milliseconds.

One stage in place of retrieval and generation: its answers are a hash of the question and of what
its images hold. Everything else of a command is real.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

import mmrag_batch.run.predict
from mmrag_batch.bundle import Bundle, open_bundle
from mmrag_batch.errors import RowError
from mmrag_batch.factory import open_images
from mmrag_batch.records import Answer, Evidence, Prediction, Problem, Question, Row, Status
from mmrag_batch.run import store
from mmrag_batch.settings import DEMO_BUNDLE, PredictSettings
from mmrag_batch.sources import image_files
from mmrag_batch.stages import OpenStage
from tests.faults.hooks import spare_the_start

HOOK = f"{__name__}:install"
WINDOW = 4
"""Rows that come out in another order than they went in."""
COMMIT_ROWS = 3
"""So that a table of a few rows takes several commits."""
TOP_K = 2
NO_FILE = "no such file below the image root"
BUNDLE = open_bundle(DEMO_BUNDLE)
"""One whose files are not hashed for each command."""

Digests = Mapping[str, str | None]
"""What the files that a question names hold, by name; None for one that is not there."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a command's double does beside answering."""

    asked: str
    """A file, to which the name of each question that is asked is added."""
    die_after: int = 0
    """The process kills itself when it has asked so many questions; 0 is never."""
    stop_after: int = 0
    """The same, with a signal to stop."""
    delay: float = 0.0
    """Seconds a question."""
    commit_rows: int = COMMIT_ROWS


def name_of(question: Question) -> str:
    """What tells a question from every other."""
    documents = [[item.id, item.text, item.image] for item in question.documents]
    return json.dumps([question.text, question.image, question.choices, documents])


def reply(question: Question, digests: Digests) -> Answer:
    """What becomes of a question whose files hold this."""
    if question.image is not None and digests[question.image] is None:
        return Answer("error", problems=(_missing("question_image", question.image),))
    documents = [(item, item.image and digests[item.image] is None) for item in question.documents]
    problems = tuple(
        _missing(f"document {item.id!r}", item.image)
        for item, is_missing in documents
        if is_missing and item.image
    )
    seen = json.dumps([name_of(question), sorted(digests.items())]).encode()
    whole = hashlib.sha256(seen).digest()
    scores = sorted((-whole[n % 32] / 8, n) for n, (_, is_missing) in enumerate(documents))
    evidence = tuple((documents[n][0].id, -score) for score, n in scores if not documents[n][1])[
        :TOP_K
    ]
    status: Status = "degraded" if problems else "ok"
    if not question.choices:
        return Answer(status, whole.hex()[:12], evidence=evidence, problems=problems)
    index = whole[0] % len(question.choices)
    share = round(0.5 / max(1, len(question.choices) - 1), 6)
    probabilities = tuple(
        0.5 if place == index else share for place in range(len(question.choices))
    )
    return Answer(status, question.choices[index], index, probabilities, evidence, problems)


def _missing(what: str, image: str) -> Problem:
    return Problem("image_missing", f"{what}: {image!r}: {NO_FILE}")


class Double:
    """The stage."""

    window = WINDOW

    def __init__(self, digest: Callable[[str], str], script: Script) -> None:
        self._digest = digest
        self._script = script
        self._count = 0

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]:
        source = iter(rows)
        while batch := list(islice(source, self.window)):
            for row in sorted(
                batch, key=lambda row: hashlib.md5(repr(row.cells).encode()).digest()
            ):
                self._answer(row)
                yield row

    def _answer(self, row: Row) -> None:
        question = row.question
        assert question is not None, "a row without a question was asked"
        row.images = {source: self._find(source) for source in image_files(question)}
        with Path(self._script.asked).open("a") as log:
            log.write(name_of(question) + "\n")
        time.sleep(self._script.delay)
        self._count += 1
        if self._count == self._script.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._count == self._script.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        answer = reply(question, row.images)
        if answer.status == "error":
            (row.error,) = answer.problems
            return
        assert answer.prediction is not None
        row.problems = list(answer.problems)
        row.prediction = Prediction(answer.prediction, answer.index, answer.probabilities)
        documents = {item.id: item for item in question.documents}
        row.evidence = tuple(Evidence(documents[name], score) for name, score in answer.evidence)

    def _find(self, source: str) -> str | None:
        try:
            return self._digest(source)
        except RowError as error:
            assert str(error) == f"{source!r}: {NO_FILE}", error
            return None


def install(values: Mapping[str, object]) -> None:
    """The hook of a command: `values` are those of a Script."""
    script = Script(**values)  # type: ignore[arg-type]

    def find_stages(settings: PredictSettings, bundle: Bundle) -> list[OpenStage]:
        return [lambda: nullcontext(Double(open_images(settings).digest, script))]

    mock.patch.multiple(
        mmrag_batch.run.predict, find_stages=find_stages, load_bundle=lambda _: BUNDLE
    ).start()
    mock.patch.object(store, "COMMIT_ROWS", script.commit_rows).start()
    spare_the_start()
