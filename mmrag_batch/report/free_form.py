"""How near an answer in free form is to the right ones: each figure by its published definition,
from 0 to 1. Where a row has several right answers, the nearest one counts."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBERS = "none zero one two three four five six seven eight nine ten".split()
_DIGITS = {word: str(max(0, value - 1)) for value, word in enumerate(_NUMBERS)}
_NUMBER = re.compile(r"[+-]?(\d+(,\d{3})*(\.\d*)?|\.\d+)(e[+-]?\d+)?\s*(%?)", re.IGNORECASE)
TOLERANCE = 0.05
THRESHOLD = 0.5
FAR = 1000
"""Characters past which two answers are not compared letter by letter."""


@dataclass(frozen=True, slots=True)
class FreeForm:
    """The figures of an answer, or their means over rows.

    exact_match: equal by `normalize_vqa`. f1: tokens in common (SQuAD, Rajpurkar 2016). anls: edit
    similarity, 0 below a half (Biten 2019). relaxed: a number within 5%, else equal (ChartQA, Masry
    2022). vqa: agreement with people (VQA, Antol 2015); None without a column of their answers.
    """

    exact_match: float
    f1: float
    anls: float
    relaxed: float
    vqa: float | None


def score_answer(answer: str, references: Sequence[str], people: Sequence[str] = ()) -> FreeForm:
    """The figures of an answer, given the right ones and, if known, what people answered."""
    return FreeForm(
        exact_match=float(is_exact(answer, references)),
        f1=max(token_f1(answer, one) for one in references),
        anls=max(edit_similarity(answer, one) for one in references),
        relaxed=max(float(is_near(answer, one)) for one in references),
        vqa=vqa_score(answer, people) if people else None,
    )


def is_exact(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer is one of the right ones, as the evaluation of VQA compares."""
    return normalize_vqa(answer) in map(normalize_vqa, references)


def normalize_vqa(text: str) -> str:
    """As the evaluation of VQA compares: small letters, numbers as digits, without articles and
    punctuation but a decimal point. Apostrophes are left out, so that a missing one is none."""
    text = text.lower().replace("'", "").replace("\u2019", "")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]|_", " ", text)
    words = (_DIGITS.get(word, word) for word in _ARTICLES.sub(" ", text).split())
    return " ".join(words)


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of tokens, without case, punctuation, articles."""
    ours, theirs = _tokens(answer), _tokens(reference)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


def edit_similarity(answer: str, reference: str) -> float:
    """1 minus the edit distance as a share of the longer text; 0 where that share is a half or
    more."""
    ours, theirs = answer.strip().lower(), reference.strip().lower()
    longest = max(len(ours), len(theirs))
    if longest == 0 or ours == theirs:
        return 1.0
    if longest > FAR or abs(len(ours) - len(theirs)) >= THRESHOLD * longest:
        return 0.0
    share = _edit_distance(ours, theirs) / longest
    return 1 - share if share < THRESHOLD else 0.0


def is_near(answer: str, reference: str) -> bool:
    """Whether a number is within 5% of the right one; texts must be equal but for case."""
    ours, theirs = _number(answer), _number(reference)
    if ours is None or theirs is None:
        return answer.strip().lower() == reference.strip().lower()
    return abs(ours - theirs) <= TOLERANCE * abs(theirs)


def vqa_score(answer: str, people: Sequence[str]) -> float:
    """The mean, over each of the people left out, of min(1, others who say the same / 3)."""
    ours = normalize_vqa(answer)
    equal = [normalize_vqa(one) == ours for one in people]
    if len(people) == 1:
        return float(equal[0])
    return sum(min(1.0, (sum(equal) - one) / 3) for one in equal) / len(people)


def _tokens(text: str) -> list[str]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _ARTICLES.sub(" ", text).split()


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    value = float(text.strip().rstrip("%").replace(",", ""))
    return value / 100 if match[5] else value


def _edit_distance(left: str, right: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions of characters."""
    before = list(range(len(right) + 1))
    for row, letter in enumerate(left, start=1):
        now = [row]
        for column, other in enumerate(right, start=1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != other)))
        before = now
    return before[-1]
