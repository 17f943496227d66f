"""Secrets kept out of what a run says: of messages, of logs, of the `error` column.

What a cell holds passes through to the output as it is; only what is said about it is masked.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
_SECRETS = re.compile(
    # user:password of a URL, with @ and / in it where it has any; a port is none
    r"(?<=://)[^\s'\"@/:]*:(?!\d+[/?#\s])[^\s'\"]*(?=@)"
    r"|(?<=://)[^/\s'\"]+(?=@)"
    r"|(?i:(?<=bearer )[\w.~+/=-]{8,})"  # what follows in an Authorization header (RFC 6750)
    r"|(?<![\w-])(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[\w-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JSON web tokens (RFC 7519)
    r"|(?i:(?<=token=)|(?<=key=)|(?<=secret=)|(?<=password=)|(?<=signature=)|(?<=sig=))[^&\s'\"]+"
)
_NAMES = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_?KEY)$")
_SHORTEST = 8
"""Characters below which the value of a variable is a word rather than a secret."""


def mask(text: str) -> str:
    """The text without URL passwords, known kinds of tokens and the secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMES.search(name):
            text = text.replace(value, MASK)
    return _SECRETS.sub(MASK, text)


def mask_all(value: Any) -> Any:
    """The same of every text in what JSON can hold; what is neither a text, nor a mapping, nor a
    sequence, stays as it is."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {name: mask_all(one) for name, one in value.items()}
    return [mask_all(one) for one in value] if isinstance(value, Sequence) else value


class MaskingFormatter(logging.Formatter):
    """Formats a log record, traceback included, and masks the whole."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))
