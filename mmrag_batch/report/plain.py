"""Texts of a table as they are shown to people."""

import unicodedata

from mmrag_batch.masking import mask
from mmrag_batch.sources import is_inline


def plain(text: str) -> str:
    """A text without secrets, whose control characters are shown and have no effect."""
    return "".join(map(_visible, mask(text)))


def short(source: str) -> str:
    """A source as it can be read: pictures in the table itself have thousands of characters."""
    text = plain(source).replace("\n", " ")
    cut = 32 if is_inline(source) else 120
    return text if len(text) <= cut else f"{text[:cut]}... ({len(source):,} characters)"


def _visible(letter: str) -> str:
    is_control = unicodedata.category(letter)[0] == "C" and letter not in "\n\t\u200c\u200d"
    return letter.encode("unicode_escape").decode() if is_control else letter
