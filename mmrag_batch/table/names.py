"""Which column of a table is which of ours.

A name is ours whatever its case, blanks, `_` and `-`, where no other column has it: ` Documents` is
`documents`. A name that is merely like one of ours is never taken for it: it is told, with what to
rename, and `--columns` maps it.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from types import MappingProxyType

from mmrag_batch.errors import ConfigError

Names = Mapping[str, str]
"""What a table calls ours: its columns, and the keys of its documents, as in `documents.text`."""
AS_THEY_ARE: Names = MappingProxyType({})
COLUMNS = {
    "id": "",  # any will do, and none is needed: nothing is said of other names
    "question_text": "question query prompt problem text input instruction",
    "question_image": "image images img picture photo figure image_path image_file image_url "
    "file_name filename",
    "answer_choices": "options option choices choice candidates alternatives answers",
    "documents": "document docs doc context contexts ctxs passages passage paragraphs evidences "
    "references retrieved retrieved_documents knowledge corpus",
    "label": "answer labels answers target gold gold_answer correct correct_answer correct_option "
    "ground_truth answer_key answer_index answer_idx solution",
    "relevant": "relevant_documents relevant_docs relevant_ids positives positive gold_documents "
    "gold_ids qrels supporting_facts",
}
"""Our columns, and what others call them."""
KEYS = {
    "id": "_id doc_id docid document_id pid passage_id uid",
    "text": "content contents passage body document paragraph page_content context",
    "image": "img picture photo figure image_path image_file image_url path file_name filename url",
    "title": "heading",
}
"""The same for the keys of a document."""
_KEYS = frozenset(KEYS)
PREFIX = "documents."


def parse_names(text: str) -> Names:
    """What `--columns` says, as in `question_image=image,documents.text=content`.

    Raises ConfigError for a name that is not ours, or one that is given twice.
    """
    names: dict[str, str] = {}
    known = [*COLUMNS, *(PREFIX + key for key in KEYS)]
    for part in filter(str.strip, text.split(",")):
        ours, _, theirs = part.partition("=")
        ours = ours.strip()
        if ours not in known:
            near = get_close_matches(ours, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
            raise ConfigError(f"--columns: there is no {ours!r} to be found in a table; {hint}")
        if ours in names:
            raise ConfigError(f"--columns: {ours!r} is given twice.")
        names[ours] = theirs
    return names


def find_columns(columns: Sequence[str], names: Names = AS_THEY_ARE) -> Mapping[str, str]:
    """The columns of a table that are ours under other names: what it calls them, by ours."""
    return _find(tuple(columns), tuple(COLUMNS), tuple(names.items()))


def find_keys(keys: Sequence[str], names: Names = AS_THEY_ARE) -> Mapping[str, str]:
    """The same of the keys of a document."""
    if not names and _KEYS.issuperset(keys):
        return AS_THEY_ARE
    given = [(one.removeprefix(PREFIX), name) for one, name in names.items() if PREFIX in one]
    return _find(tuple(keys), tuple(KEYS), tuple(given))


@lru_cache(4096)
def _find(
    present: tuple[str, ...], ours: tuple[str, ...], given: tuple[tuple[str, str], ...]
) -> Mapping[str, str]:
    found = {name: theirs for name, theirs in given if name in ours}
    for name in ours:
        if name in found or name in present:
            continue
        variants = [one for one in present if _fold(one) == _fold(name)]
        if ours == tuple(COLUMNS) and name == "id":
            continue  # ids must be unique, and a column so called need not be one
        if len(variants) == 1 and variants[0] not in found.values():
            found[name] = variants[0]
    return MappingProxyType(found)


@lru_cache(4096)
def _fold(name: str) -> str:
    return re.sub(r"[\s_\-\ufeff\u200b]+", "", name).casefold()


def count_known(columns: Sequence[str]) -> int:
    """How many columns have a name that is one of ours, or what others call it."""
    known = _known()
    return sum(_fold(name) in known for name in columns)


@lru_cache(1)
def _known() -> frozenset[str]:
    return frozenset(
        _fold(name) for ours, others in COLUMNS.items() for name in [ours, *others.split()]
    )


def tell_columns(columns: Sequence[str], names: Names = AS_THEY_ARE) -> list[str]:
    """What is to be said of columns that are like one of ours and are not used."""
    return _tell("columns", _find_near(columns, COLUMNS, find_columns(columns, names)), names)


def tell_keys(keys: Sequence[str], names: Names = AS_THEY_ARE) -> tuple[str, ...]:
    """The same of the keys of a document."""
    if _KEYS.issuperset(keys):
        return ()
    return _tell_keys(tuple(keys), tuple(names.items()))


@lru_cache(4096)
def _tell_keys(keys: tuple[str, ...], names: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found = find_keys(keys, dict(names))
    said = [
        f"key {theirs!r} of documents is read as `{ours}`."
        for ours, theirs in found.items()
        if PREFIX + ours not in dict(names)
    ]
    near = _find_near(keys, KEYS, found)
    return (*said, *_tell("keys of documents", near, dict(names), PREFIX))


def find_near(ours: str, columns: Sequence[str]) -> str | None:
    """The column that is most like one of ours which is not there."""
    near = _find_near(columns, {ours: COLUMNS[ours]}, {})
    return near[0][0] if near else None


def how_to_map(names: Names) -> str:
    """What to type."""
    return f"--columns {shlex.quote(','.join(f'{ours}={name}' for ours, name in names.items()))}"


def _tell(
    what: str, near: Sequence[tuple[str, list[str]]], names: Names, prefix: str = ""
) -> list[str]:
    """One line for all names that are near, with one mapping for them: its flag is given once."""
    if not near:
        return []
    mapping, found = dict(names), []
    for name, ours in near:
        found.append(f"{name!r} ({' or '.join(f'`{one}`' for one in ours)})")
        free = next((one for one in ours if prefix + one not in mapping), None)
        if free is not None:
            mapping[prefix + free] = name
    return [
        f"{what} that are not used, and whose names are like ours: {', '.join(found)}. "
        f"Rename them, or map them: `{how_to_map(mapping)}`."
    ]


def _find_near(
    present: Sequence[str], others: Mapping[str, str], found: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """The names that are like one of ours which is not there, and which of ours."""
    absent = [name for name in others if name not in present and name not in found]
    free = (name for name in present if name not in others and name not in found.values())
    near = ((name, [one for one in absent if _is_near(name, one, others[one])]) for name in free)
    return [(name, ours) for name, ours in near if ours]


def _is_near(name: str, ours: str, others: str) -> bool:
    if not others:
        return False
    is_misspelt = get_close_matches(_fold(name), [_fold(ours)], n=1, cutoff=0.8)
    return bool(is_misspelt) or _fold(name) in map(_fold, (ours, *others.split()))
