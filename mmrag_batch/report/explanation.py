"""What became of one row, from question to answer, as text for people or as facts for machines."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmrag_batch.masking import mask
from mmrag_batch.report.plain import plain, short

WIDTH = 100
Fate = Literal["kept", "shortened", "cut", "below", "unreadable", "unranked"]
"""Of a document: it is evidence, or a part of its text is; it was among the best, and left out of a
prompt that was too long; others were better; it cannot be read; nothing ranks it here."""
WORDS: Mapping[Fate, str] = {"below": "not kept", "cut": "too long", "unranked": ""}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the row: its source, its width and height in pixels or why it cannot be read."""

    source: str
    size: tuple[int, int] | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question. `label` indexes `choices`, `answers` are right without choices."""

    text: str
    picture: Picture | None
    choices: tuple[str, ...]
    label: int | None
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document: its rank from 1 and its score, whether it is relevant and whether its picture is
    shown where that is known; `kept_text` is what the prompt has of its text."""

    id: str
    text: str | None
    picture: Picture | None
    rank: int | None
    score: float | None
    fate: Fate
    relevant: bool | None
    shown: bool | None
    kept_text: str | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A prompt: its text, cut behind each image's placeholder; its length in tokens, the most that
    there may be, and how many of them images take beyond their placeholders; and the most images.
    Where a server applies a chat template of its own, `is_rendered` is not set, and the length is a
    guess."""

    pieces: tuple[str, ...]
    images: tuple[str, ...]
    tokens: int
    limit: int
    of_images: int
    image_limit: int
    is_rendered: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer, as an output has it; `right` where a label says so."""

    status: str
    prediction: str | None
    index: int | None
    confidence: float | None
    confidence_per_token: float | None
    probabilities: tuple[float, ...]
    evidence: tuple[tuple[str, float], ...]
    error: str | None
    right: bool | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of that. `table` is where the row stands, `line` its line there. `notes` say what is not
    as it was, `unranked` and `unsent` why there is no ranking and no prompt; `next` is what to type
    once `before` is done.
    """

    output: str
    table: str
    row: int
    line: int
    id: str
    bundle: str
    notes: tuple[str, ...]
    question: Asked | None
    top_k: int | None
    documents: tuple[Candidate, ...]
    unranked: str | None
    prompt: Sent | None
    unsent: str | None
    answer: Answered | None
    before: str | None
    next: str | None


def facts_of(row: Explanation) -> dict[str, Any]:
    """All of it under the names of the dataclasses; the text of the prompt in one piece."""
    values = asdict(row)
    if values["prompt"] is not None:
        values["prompt"]["text"] = "".join(values["prompt"].pop("pieces"))
    return values


def as_text(row: Explanation) -> str:
    """In the order in which it happened, in lines of at most WIDTH columns but for long words."""
    head = [f"{row.table}: row {row.row}, line {row.line}, id {plain(row.id)!r}"]
    head += [line for note in row.notes for line in _wrapped(note, "  ! ", "    ")]
    blocks = [head, _question(row), _documents(row), _prompt(row), _answer(row)]
    return "\n\n".join("\n".join(block) for block in blocks)


def _question(row: Explanation) -> list[str]:
    if (asked := row.question) is None:
        return ["Question", *_wrapped("the row cannot be read, so nothing was asked.", "  ")]
    lines = ["Question", *_wrapped(asked.text, "  ")]
    if asked.picture is not None:
        why = f": {asked.picture.problem}" if asked.picture.problem else ""
        lines += _wrapped(f"picture: {_picture(asked.picture)}{why}", "  ", "    ")
    for index, choice in enumerate(asked.choices):
        mark = "   <- label" if index == asked.label else ""
        lines += _wrapped(choice + mark, f"  [{index}] ", "      ")
    if not asked.choices:
        lines.append("  no choices: an answer in free form")
    if asked.answers:
        lines += _wrapped("right: " + " | ".join(asked.answers), "  ", "    ")
    return lines


def _documents(row: Explanation) -> list[str]:
    documents = row.documents
    if not documents:
        return ["Documents: not read" if row.question is None else "Documents: none"]
    in_prompt = sum(one.fate in ("kept", "shortened") for one in documents)
    count = f"{len(documents)} candidate{'s' if len(documents) > 1 else ''}"
    if row.unranked is not None:
        lines = [f"Documents: {count}, not ranked", *_wrapped(row.unranked, "  ")]
    else:
        lines = [f"Documents: {count}, {in_prompt} kept as evidence (at most {row.top_k})"]
    knows_relevant = any(one.relevant is not None for one in documents)
    if knows_relevant and not any(one.relevant for one in documents):
        lines.append("  none is relevant, the table says")
        knows_relevant = False
    for one in documents:
        lines += _document(one, knows_relevant)
    return lines


def _document(one: Candidate, knows_relevant: bool) -> Iterator[str]:
    rank = "-" if one.rank is None else str(one.rank)
    score = "-" if one.score is None else f"{one.score:.4f}"
    head = f"{rank:>4}  {score:>9}  {WORDS.get(one.fate, one.fate):10}  "
    head += f"{'relevant' if one.relevant else '':8}  " if knows_relevant else ""
    what = [f"{plain(one.id)}:"]
    what += [] if one.picture is None else [_picture(one.picture, is_hidden=one.shown is False)]
    what += [] if one.text is None else [plain(one.text)]
    text, indent = " ".join(" ".join(what).split()), " " * (len(head) + 2)
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=indent, max_lines=2, placeholder=" ..."
    )
    if one.fate == "shortened":
        kept, whole = len(one.kept_text or ""), len(one.text or "")
        yield f"{indent}the first {kept:,} of its {whole:,} characters are in the prompt"
    if one.problem is not None:
        yield from _wrapped(one.problem, indent)


def _prompt(row: Explanation) -> list[str]:
    if (sent := row.prompt) is None:
        why = "as above" if row.unsent == row.unranked and row.documents else row.unsent
        return ["Prompt: none", *_wrapped(why or "", "  ")]
    title = f"Prompt: {'' if sent.is_rendered else 'some '}{sent.tokens:,} of at most "
    title += f"{sent.limit:,} tokens, {len(sent.images)} of at most {sent.image_limit} pictures"
    title += f" ({sent.of_images:,} tokens)" if sent.of_images else ""
    lines = [title]
    if not sent.is_rendered:
        lines.append("  as messages: the server has the chat template, and counts pictures")
    beside = [f" [{short(source)}]" for source in sent.images]
    text = "".join(map("".join, zip(sent.pieces, (*beside, ""), strict=True)))
    for line in plain(text).split("\n"):
        room = WIDTH - 4
        first, *others = [line[at : at + room] for at in range(0, len(line), room)] or [""]
        lines += [f"  | {first}".rstrip(), *(f"    {other}" for other in others)]
    lines += _wrapped(row.unsent, "  ") if row.unsent else []
    return lines


def _answer(row: Explanation) -> list[str]:
    lines = ["Answer: none yet"]
    if (answer := row.answer) is not None:
        lines = [f"Answer: {answer.status}"]
        if answer.prediction is not None:
            lines += _wrapped(answer.prediction, "  prediction  ", " " * 14)
        if answer.status != "error":
            lines += [f"  confidence  {_figure(answer.confidence)}"]
        if answer.confidence_per_token is not None:
            lines[-1] += f", {_figure(answer.confidence_per_token)} a token"
        for index, value in enumerate(answer.probabilities):
            choice = row.question.choices[index] if row.question else ""
            marks = [] if row.question is None or index != row.question.label else ["label"]
            marks += ["predicted"] if index == answer.index else []
            mark = f"   <- {', '.join(marks)}" if marks else ""
            lines += _wrapped(choice + mark, f"    {value:.6f}  [{index}] ", " " * 18)
        if answer.right is not None:
            lines.append("  right" if answer.right else "  wrong" + _hint(row))
        lines += _wrapped(answer.error, "  ", "    ") if answer.error else []
    if row.next is not None:  # a command is not wrapped, so that it can be copied
        first = [f"  Next: {row.before}, then"] if row.before else []
        lines += [*first, f"    {mask(row.next)}" if first else f"  Next: {mask(row.next)}"]
    return lines


def _hint(row: Explanation) -> str:
    """What may have made an answer wrong."""
    relevant = [one for one in row.documents if one.relevant]
    if not relevant or any(one.fate in ("kept", "shortened") for one in relevant):
        return ""
    return "; no relevant document is in the prompt"


def _figure(value: float | None) -> str:
    return "not told by the engine" if value is None else f"{value:.6g}"


def _picture(picture: Picture, *, is_hidden: bool = False) -> str:
    details = "cannot be read" if picture.size is None else "{} x {}".format(*picture.size)
    details += ", not shown" if is_hidden and picture.size else ""
    return f"{short(picture.source)} ({details})"


def _wrapped(text: str, first: str, others: str | None = None) -> list[str]:
    """The lines of a text, in lines that are not too long, each behind an indent."""
    indent = " " * len(first) if others is None else others
    lines: list[str] = []
    for line in plain(text).split("\n"):
        before = indent if lines else first
        wrapped = textwrap.wrap(
            line,
            WIDTH,
            initial_indent=before,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += wrapped or [before.rstrip()]
    return lines
