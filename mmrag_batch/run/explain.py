"""What became of one row of a run: its retrieval and its prompt made once more, without an engine,
beside the answer that the output has."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mmrag_batch.errors import MmragError, RowError
from mmrag_batch.factory import open_images
from mmrag_batch.images.pages import with_pages
from mmrag_batch.records import Document, Row
from mmrag_batch.report.explanation import (
    Answered,
    Asked,
    Candidate,
    Explanation,
    Fate,
    Picture,
)
from mmrag_batch.run.again import Again, ask_again, failure
from mmrag_batch.run.copies import bring_bundle
from mmrag_batch.run.files import Paths
from mmrag_batch.run.keys import differences, digest_of
from mmrag_batch.run.one import (
    Output,
    find_kept,
    find_output,
    find_row,
    read_answer,
    was_changed,
)
from mmrag_batch.run.plan import find_answer_settings, settings_of_run
from mmrag_batch.settings import PredictSettings
from mmrag_batch.stages import ImageStore
from mmrag_batch.table.names import parse_names
from mmrag_batch.table.truth import Reading

TOLERANCE = 0.05
"""How far a score may be from what it was: in half precision, on another device."""

OF_ROWS = ("bad_", "image_", "page_", "path_", "prompt_", "embedding_")
"""How the codes of problems begin that keep a row from an engine."""


def explain(
    path: Path,
    wanted: str,
    given: Mapping[str, object],
    *,
    store: Path | None = None,
    reading: Reading | None = None,
) -> Explanation:
    """One row of an output, by its id or its number; `given` are settings in place of the run's.

    Raises MissingError where there is no such row or no run, InputError for a table that `predict`
    did not write.
    """
    output = find_output(Paths.of(path, store))
    settings = settings_of_run(output.paths, output.job, output.manifest, given)
    with suppress(MmragError):  # what is known without a bundle is shown all the same
        settings = bring_bundle(settings)
    # One row takes no GPU from who is at work, writes no cache, and waits for no engine.
    settings = replace(settings, device="cpu", embedding_cache=None)
    table = path if output.is_there else settings.input
    row = find_row(table, wanted, parse_names(settings.columns), reading)
    kept = find_kept(output, row)
    answer = read_answer(output, row, kept)
    images = open_images(settings)
    again = ask_again(settings, row, images)
    has_changed = kept is not None and bool(row.images) and digest_of(row.images) != kept.images
    notes = [*tell_output(output, settings), *again.notes]
    if has_changed:
        notes.append("A picture of the row has changed, came or went since it was answered.")
    notes += [] if answer is None else _tell_changes(row, again, answer)
    before, command = _find_next(output, row, answer, has_changed=has_changed)
    return Explanation(
        output=str(path),
        table=str(table),
        row=row.number,
        line=row.line,
        id=row.id,
        bundle=str(settings.bundle),
        notes=tuple(notes),
        question=_describe_question(row, images),
        top_k=again.top_k,
        documents=tuple(_describe_documents(row, again, images)),
        unranked=again.unranked,
        prompt=again.sent,
        unsent=again.unsent,
        answer=answer,
        before=before,
        next=command,
    )


def _describe_question(row: Row, images: ImageStore) -> Asked | None:
    if (question := row.question) is None:
        return None
    picture = None if question.image is None else _look_at(question.image, images)
    return Asked(question.text, picture, question.choices, question.label, question.answers)


def _describe_documents(row: Row, again: Again, images: ImageStore) -> Iterator[Candidate]:
    """Every document: those that are ranked in order, then the others."""
    if row.question is None:
        return
    question = with_pages(row.question, images)
    in_prompt = {item.document.id: item.document for item in row.evidence}
    ranked = {item.document.id: (rank, item) for rank, item in enumerate(again.ranked, start=1)}
    documents = {item.document.id: item.document for item in again.ranked}
    documents |= {one.id: one for one in question.documents if one.id not in ranked}
    for name, document in documents.items():
        rank, item = ranked.get(name, (None, None))
        left = in_prompt.get(name)
        picture = None if document.image is None else _look_at(document.image, images)
        problem = _find_problem(row, document, picture)
        is_shown = None
        if again.prompt is not None and left is not None and document.image is not None:
            is_shown = document.image in again.prompt.images
        fate = _find_fate(document, left, rank, again.top_k)
        yield Candidate(
            id=name,
            text=document.text,
            picture=picture,
            rank=rank,
            score=None if item is None else item.score,
            fate="unreadable" if problem else fate,
            relevant=None if question.relevant is None else name in question.relevant,
            shown=is_shown,
            kept_text=left.text if left is not None and fate == "shortened" else None,
            problem=problem,
        )


def _find_problem(row: Row, document: Document, picture: Picture | None) -> str | None:
    """Why a document was left out, or would be."""
    begins = f"document {document.id!r}: "  # as `document_problem` names it
    said = (one for one in row.problems if one.message.startswith(begins))
    problems = (f"{one.code}: {one.message.removeprefix(begins)}" for one in said)
    return next(problems, None if picture is None else picture.problem)


def _find_fate(
    document: Document, left: Document | None, rank: int | None, top_k: int | None
) -> Fate:
    if left is not None:
        return "kept" if left.text == document.text else "shortened"
    if rank is None or top_k is None:
        return "unranked"
    return "cut" if rank <= top_k else "below"


def _look_at(source: str, images: ImageStore) -> Picture:
    try:
        return Picture(source, images.load(source).size, None)
    except RowError as error:
        return Picture(source, None, f"{error.code}: {error}")


def tell_output(output: Output, settings: PredictSettings) -> Iterator[str]:
    """What of the run is not as it was."""
    if not output.is_there:
        yield f"{output.paths.output} is not there yet: this is what is known so far."
    elif output.manifest is None:
        yield f"No manifest says what {output.paths.output} is, so nothing can be compared."
    elif was_changed(output):
        yield f"{output.paths.output} was changed since it was written."
    said = output.manifest or output.job
    with suppress(MmragError):  # of a bundle that is not there, which is told where it matters
        if said and (changes := differences(said.settings, find_answer_settings(settings))):
            what = "Ranking and prompt are made with something else than the answer"
            yield f"{what}: {'; '.join(changes)}."
    if output.job is None and settings.image_root is None:
        yield (
            f"No store says where pictures are: they are looked for beside {settings.input}. If "
            "they are elsewhere, name the folder with `--image-root`."
        )


def _tell_changes(row: Row, again: Again, answer: Answered) -> Iterator[str]:
    """What of the row is not as it was when it was answered."""
    if again.sent is None and row.error is None:
        return
    if again.sent is not None and answer.status == "error" and _is_ours(answer):
        yield "What failed was mended since: the prompt is the one that would be sent now."
        return
    now = "error" if row.error is not None else "degraded" if row.problems else "ok"
    if row.error is not None and not (answer.status == "error" and _is_ours(answer)):
        yield f"It would fail now: {failure(row)}"
    elif now != answer.status and answer.status not in ("error", "abstained"):
        yield f"Its documents were read otherwise: the answer is {answer.status!r}, now {now!r}."
    then = answer.evidence
    found = tuple((item.document.id, item.score) for item in row.evidence)
    scores = dict(found)
    if {name for name, _ in then} != scores.keys():
        yield (
            f"The evidence was {_names(then)} and is {_names(found)} now: a picture, the bundle or "
            "the table is another one."
        )
    elif apart := [name for name, score in then if abs(score - scores[name]) > TOLERANCE]:
        was = dict(then)
        yield "The scores are not what they were: " + ", ".join(
            f"{name!r} had {was[name]:.4f}, has {scores[name]:.4f}" for name in apart
        )


def _is_ours(answer: Answered) -> bool:
    """Whether an error is one of the row, which no engine was asked about."""
    return (answer.error or "").startswith(OF_ROWS)


def _names(evidence: Sequence[tuple[str, float]]) -> str:
    return ", ".join(repr(name) for name, _ in evidence) or "empty"


def _find_next(
    output: Output, row: Row, answer: Answered | None, *, has_changed: bool
) -> tuple[str | None, str | None]:
    """What to do, if anything, and what to type then."""
    if not output.is_there:
        path = shlex.quote(os.fspath(output.paths.output))
        return None, f"mmrag-batch merge {path}" if output.has_shards else output.command()
    if answer is None:
        return None, None
    if answer.status == "error" and row.question is None:
        return "mend the cell", output.command()
    if answer.status == "error":
        return "mend the cause", output.command("--retry-errors")
    if has_changed:
        return None, output.command("--verify-inputs")
    if answer.status == "degraded":
        return "mend the document", output.command("--retry-degraded")
    return None, None
