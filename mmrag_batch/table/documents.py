"""The documents of a corpus: the rows of a table, or the files of a folder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmrag_batch.errors import InputError, MissingError, RowError
from mmrag_batch.records import Document, Problem
from mmrag_batch.sources import IMAGES
from mmrag_batch.table.cells import parse_document
from mmrag_batch.table.formats import read_any
from mmrag_batch.table.names import (
    AS_THEY_ARE,
    KEYS,
    PREFIX,
    Names,
    find_keys,
    how_to_map,
    parse_names,
    tell_keys,
)
from mmrag_batch.table.pictures import image_source
from mmrag_batch.table.record import MAX_CELL, Cells, Typed
from mmrag_batch.table.values import check_characters, is_empty

TEXTS = frozenset({"txt", "text", "md", "rst"})
"""Suffixes of files that are read as texts."""


class Listed(NamedTuple):
    """A document of a table or folder: where it stands there (`line 7`, or its path), itself and
    its `other` columns; or what is wrong with it."""

    where: str
    document: Document | None
    other: Mapping[str, object]
    problem: Problem | None = None


def parse_document_names(text: str) -> Names:
    """What `--columns` says of a table of documents, as in `text=content,image=photo`. Raises
    ConfigError."""
    parts = (part.strip() for part in text.split(","))
    return parse_names(
        ",".join(part if part.startswith(PREFIX) else PREFIX + part for part in parts if part)
    )


def read_documents(path: Path, names: Names = AS_THEY_ARE) -> Iterator[Listed]:
    """The documents in a table, or below a folder, one by one. `names` are what a table calls ours:
    `id` (default: the number of the row, from 0), `text`, `title`, `image`.

    Of a folder, every text, picture and PDF is a document, called by its path. Raises what
    `check_documents` does.
    """
    yield from _files(path) if path.is_dir() else _rows(path, names)


def check_documents(path: Path, names: Names = AS_THEY_ARE) -> Sequence[str]:
    """What is to be said before: columns that are like ours, files that are no documents.

    Raises what `read_any` raises, MissingError where there is nothing, InputError for a table
    without any of our columns.
    """
    if not path.exists():
        raise MissingError(f"There is no file or folder {path}.")
    if path.is_dir():
        others = sorted({_suffix(name) or name for name in _names(path) if _kind(name) is None})
        some = ", ".join(others[:5])
        return [f"Files that are no documents are passed over: {some}."] if others else []
    columns = _columns(path)
    _ours(path, columns, names)
    return tell_keys(columns, names)


def _rows(path: Path, names: Names) -> Iterator[Listed]:
    ours = _ours(path, _columns(path), names)
    used = set(ours.values())
    for number, record in enumerate(read_any(path)):
        where = f"line {record.line}"
        if record.problem is not None:
            yield Listed(where, None, {}, record.problem)
            continue
        cells = Cells(record.cells, {})
        item = {key: _value(key, cells.get(theirs)) for key, theirs in ours.items()}
        other = {name: _plain(cell) for name, cell in record.cells.items() if name not in used}
        try:
            for column, cell in record.cells.items():
                check_characters("bad_document", column, cell)
            yield Listed(where, parse_document(number, item), other)
        except RowError as error:
            yield Listed(where, None, {}, Problem("bad_document", str(error)))


def _ours(path: Path, columns: Sequence[str], names: Names) -> Mapping[str, str]:
    """What a table calls our columns, by ours."""
    ours = {key: key for key in KEYS if key in columns} | dict(find_keys(columns, names))
    if absent := [theirs for theirs in ours.values() if theirs not in columns]:
        raise InputError(f"{path}: no column {absent[0]!r}. Found: {', '.join(columns)}.")
    if not ours.keys() & {"text", "title", "image"}:
        mapping = how_to_map({"text": columns[0]})
        raise InputError(
            f"{path}: no column is a document's `text`, `title` or `image`. Found: "
            f"{', '.join(columns)}. Rename one, or map it, as in `{mapping}`."
        )
    return ours


def _columns(path: Path) -> tuple[str, ...]:
    """The columns of a table; of JSON Lines, those of its first rows."""
    columns: dict[str, None] = {}
    for number, record in enumerate(read_any(path)):
        columns.update(dict.fromkeys(record.cells))
        if number == 100:
            break
    if not columns:
        raise InputError(f"{path} has no rows: a corpus is made of documents.")
    return tuple(columns)


def _value(key: str, cell: object) -> object:
    value = image_source(cell) if key == "image" else cell
    if is_empty(value):
        return None
    return value if isinstance(value, str) or key != "id" else str(value)


def _plain(cell: object) -> object:
    plain = cell.plain if isinstance(cell, Typed) else cell
    return plain.hex() if isinstance(plain, bytes) else plain


def _files(folder: Path) -> Iterator[Listed]:
    for name in _names(folder):
        kind = _kind(name)
        if kind == "image":
            yield Listed(name, Document(name, None, name), {})
        elif kind == "text":
            try:
                yield Listed(name, Document(name, _read_text(folder / name), None), {})
            except RowError as error:
                yield Listed(name, None, {}, Problem(error.code, str(error)))


def _names(folder: Path) -> Iterator[str]:
    """The files below a folder but for those with a dot before their name, in order."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def _kind(name: str) -> str | None:
    suffix = _suffix(name)
    return "image" if suffix in IMAGES else "text" if suffix in TEXTS else None


def _suffix(name: str) -> str:
    return Path(name).suffix[1:].lower()


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_CELL:
            raise RowError("bad_document", f"over {MAX_CELL:,} bytes")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RowError("bad_document", "not UTF-8") from None
    except OSError as error:
        raise RowError("bad_document", f"cannot be read: {error.strerror}") from None
    check_characters("bad_document", file.name, text)
    if not text.strip():
        raise RowError("bad_document", "it is empty")
    return text
