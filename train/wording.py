"""Whether a text holds a choice: as words or as a number of its own, in any script."""

from unicodedata import category, name, normalize

NO_SPACES = (
    "CJK",
    "HANGUL",  # has spaces, but its particles join the word before
    "HALFWIDTH",
    "HIRAGANA",
    "IDEOGRAPHIC",
    "KATAKANA",
    "KHMER",
    "LAO",
    "MYANMAR",
    "THAI",
)
"""What the names of letters begin with, in Unicode, whose words need no spaces between them."""
HYPHENS = "-\u2010\u2013"
NUMBER_MARKS = ".,:/'^\u2019\u2044\u066b\u066c\uff0e\uff1a" + HYPHENS
"""What stands between the digits of one number, time, date or range."""
LIKE_A_HYPHEN = str.maketrans("\u2011\u2212\ufe63\uff0d", "----")
"""The non-breaking hyphen, and the signs for minus."""


def normalized(text: str) -> str:
    """A text whatever its case, its spaces, and how its letters are composed."""
    composed = normalize("NFC", normalize("NFC", text).casefold())
    return " ".join(composed.translate(LIKE_A_HYPHEN).split())


def holds(text: str, choice: str) -> bool:
    """Whether a normalized text has a choice in it that is no part of a longer word or number.

    Punctuation bounds words: `red,green,blue` holds `green`, though `infra-red` no `red`. Between
    digits it joins them: `5` is not in `5.5`, `10:5` or `1/5`, nor in `-5`. Letters of languages
    without spaces have no bounds.
    """
    wanted = normalized(choice)
    start = text.find(wanted)
    while start >= 0:
        stop = start + len(wanted)
        before, after = text[max(0, start - 2) : start][::-1], text[stop : stop + 2]
        if not (_continues(wanted, before, is_before=True) or _continues(wanted, after)):
            return True
        start = text.find(wanted, start + 1)
    return False


def _continues(choice: str, outside: str, *, is_before: bool = False) -> bool:
    """Whether what stands next to a choice on one side, two characters, the nearest first, belongs
    to the same word or number."""
    near, far = outside[:1], outside[1:]
    edge = choice[0] if is_before else choice[-1]
    if not near:
        return False
    if _is_mark(near) and not is_before:
        return True  # an accent or a vowel of the last letter
    if edge.isdecimal() or (is_before and choice[1:2].isdecimal() and edge in NUMBER_MARKS):
        if _is_of_word(near) or (near in NUMBER_MARKS and far.isdecimal()):
            return True
        if is_before:  # -5 and .5 are other numbers
            return near in HYPHENS or (near == "." and not far.isalpha())
        return near in HYPHENS and _is_of_word(far)
    return _is_of_word(edge) and (_is_of_word(near) or (near in HYPHENS and _is_of_word(far)))


def _is_of_word(character: str) -> bool:
    """Whether it goes on with a word or a number that its neighbour is part of."""
    if not (character.isalnum() or character == "_" or _is_mark(character)):
        return False
    return character.isdecimal() or not name(character, "").startswith(NO_SPACES)


def _is_mark(character: str) -> bool:
    return category(character).startswith("M") if character else False
