"""What evidence, pictures and better retrieval are worth: rows of a finished run, asked once more
with one thing changed.

evidence          no document at all
question-image    no picture beside the question, the evidence as it was
oracle            the relevant documents first, then the evidence as it was

It is a run of its own in a folder beside the output, `OUTPUT.ablations`, and keeps a run's
promises: the same command again goes on, and asks what has no answer.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from mmrag_batch.errors import ConfigError, InputError
from mmrag_batch.factory import open_images
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Document, Question, Row
from mmrag_batch.report.compare import Comparison, Pairs, compare_pairs
from mmrag_batch.report.explanation import Answered
from mmrag_batch.report.facts import Facts, read_facts
from mmrag_batch.run.copies import bring_bundle
from mmrag_batch.run.files import Paths
from mmrag_batch.run.one import Output, check_as_written, find_output, read_written
from mmrag_batch.run.plan import find_answer_settings, settings_of_run
from mmrag_batch.run.predict import predict
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.rows import read_rows
from mmrag_batch.table.truth import Reading, right_answer

Ablation = Literal["evidence", "question-image", "oracle"]
WORDS: Mapping[Ablation, str] = {
    "evidence": "no evidence",
    "question-image": "no question image",
    "oracle": "oracle evidence",
}
WHICH = ("ablation", "row", "output")
"""Columns that pass through: what was changed, in which row, of which bytes."""


class Files(NamedTuple):
    """The table that is asked, and its output."""

    questions: Path
    answers: Path


def parse_ablations(text: str) -> list[Ablation]:
    """The names between commas. Raises ConfigError for one that there is not."""
    known: tuple[Ablation, ...] = get_args(Ablation)
    given = [name.strip() for name in text.split(",")]
    if wrong := [name for name in given if name not in known]:
        raise ConfigError(f"--ablate: {wrong[0]!r} is none of {', '.join(known)}.")
    return [name for name in known if name in given]


def ablate(
    path: Path,
    ablations: Sequence[Ablation],
    *,
    rows: int,
    given: Mapping[str, object],
    store: Path | None = None,
    reading: Reading | None = None,
) -> list[Comparison]:
    """Ask at most so many labelled rows of a finished output again, drawn by hash, and compare
    with what it has. Raises what `predict` does, InputError where no row has a label, ConfigError
    for what cannot be asked of a run on a corpus."""
    output = find_output(Paths.of(path, store))
    settings = bring_bundle(settings_of_run(output.paths, output.job, output.manifest, given))
    check_as_written(output, find_answer_settings(settings))
    if settings.corpus is not None and (others := [one for one in ablations if one != "evidence"]):
        raise ConfigError(
            f"--ablate {others[0]}: documents of a corpus cannot be put beside a row yet; only "
            "`--ablate evidence` can be asked of such a run."
        )
    facts = read_facts(path, reading=reading, names=parse_names(settings.columns))
    chosen = _draw(facts, rows)
    if not chosen:
        raise InputError(f"{path}: no answered row has a label, so nothing says what is right.")
    files = _files(output)
    files.questions.parent.mkdir(parents=True, exist_ok=True)
    images = open_images(settings)
    with files.questions.open("w", encoding="utf-8") as stream:
        for row in read_rows(path, chosen, names=facts.labels.names):
            row = facts.labels.tell(row)
            for question in _change(row, read_written(path, row), ablations, images):
                stream.write(json.dumps({**question, "output": _sha256(output)}) + "\n")
    if not files.questions.stat().st_size:
        raise InputError(
            f"{path}: no row has what would be changed: {', '.join(ablations)}. The rows with a "
            "label have no evidence, no picture or no known relevant document."
        )
    predict(
        replace(
            settings,
            input=files.questions,
            output=files.answers,
            image_root=settings.image_root or settings.input.parent,
            candidates="given",
            corpus=None,
            columns="",
            limit=None,
            abstain_below=None,
            max_row_errors=str(10**9),
            overwrite=True,
            upload=None,
        )
    )
    return read_ablations(output, facts) or []


def _draw(facts: Facts, rows: int) -> list[int]:
    """The numbers of so many rows with a label and an answer: those whose id, or number, has the
    least hash, so that hardly any of them is another one when the table grows."""
    frame = facts.frame
    answered = frame[frame["status"].isin(["ok", "degraded"]) & frame["right"].notna()]
    names = zip(answered.index, answered["id"])
    hashes = {number: _hash(str(number if name is None else name)) for number, name in names}
    return sorted(int(number) for number in sorted(hashes, key=hashes.__getitem__)[:rows])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_ablations(output: Output, facts: Facts) -> list[Comparison] | None:
    """The ablations that were made before, each against the same rows of the output; none of them
    where it was another one, None where none were made."""
    answers = _files(output).answers if output.manifest else None
    if answers is None or not answers.exists():
        return None
    asked = read_facts(answers, by=WHICH, reading="text")
    comparisons = []
    for name, words in WORDS.items():
        places = [
            place
            for place, which in enumerate(zip(*(asked.columns[column] for column in WHICH)))
            if which[0] == name and which[2] == _sha256(output)
        ]
        if not places:
            continue
        here = asked.frame.iloc[places].reset_index(drop=True)
        numbers = [int(asked.columns["row"][place]) for place in places]
        there = facts.frame.iloc[numbers].reset_index(drop=True)
        same = Pairs({place: place for place in range(len(places))}, 0, 0, 0, 0)
        comparisons.append(compare_pairs(words, here, there, same))
    return comparisons


def _files(output: Output) -> Files:
    """Where the ablations of a run with these settings lie: others have other answers."""
    said = output.manifest.settings if output.manifest else {}
    digest = _hash(json.dumps(said, sort_keys=True))[:8]
    path = output.paths.output
    folder = path.with_name(f"{path.name}.ablations") / digest
    return Files(folder / "questions.jsonl", folder / "answers.jsonl")


def _sha256(output: Output) -> str:
    return output.manifest.sha256 if output.manifest else ""


def _change(
    row: Row, answer: Answered, ablations: Sequence[Ablation], images: ImageStore
) -> Iterator[dict[str, object]]:
    """The questions that a row becomes; none where there is nothing to change."""
    assert row.question is not None  # it was answered
    question = with_pages(row.question, images)
    by_id = {document.id: document for document in question.documents}
    evidence = [by_id[name] for name, _ in answer.evidence if name in by_id]
    relevant = [by_id[name] for name in by_id if name in (question.relevant or ())]
    others = [document for document in evidence if document not in relevant]
    for name in ablations:
        if name == "evidence" and answer.evidence:
            yield _as_row(name, row, question, [])
        elif name == "question-image" and question.image is not None:
            yield _as_row(name, row, replace(question, image=None), evidence)
        elif name == "oracle" and relevant:
            yield _as_row(name, row, question, [*relevant, *others])


def _as_row(
    name: Ablation, row: Row, question: Question, documents: Sequence[Document]
) -> dict[str, object]:
    """A row of the table that is asked, with its label as a text."""
    label = right_answer(question) if question.choices else row.cells.get("label")
    return {
        "question_text": question.text,
        "question_image": question.image,
        "answer_choices": list(question.choices),
        "documents": [{"id": one.id, "text": one.text, "image": one.image} for one in documents],
        "label": label,
        "answers": row.cells.get("answers"),
        "ablation": name,
        "row": row.number,
    }
