"""What a command of `commands.py` can be made to be in its own process, before it begins."""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import typer.main

from mmrag_batch.bundle import Bundle, read_manifest
from mmrag_batch.cli import app as cli
from mmrag_batch.generation.rendering import Renderer
from mmrag_batch.records import Evidence, Row
from mmrag_batch.run import lock, store
from mmrag_batch.run.versions import find_versions
from mmrag_batch.settings import DEMO_BUNDLE

VERSIONS = find_versions()
COMMAND = typer.main.get_command(cli.app)
for name, words in {"predict": ["a", "b"], "merge": ["b"], "status": ["b"]}.items():
    COMMAND.commands[name].make_context(name, words)  # type: ignore[attr-defined]
RENDERER = Renderer(DEMO_BUNDLE / "generator")
RENDERER.render([{"role": "user", "content": [{"type": "text", "text": "What?"}]}])
"""What every command would find out for itself, which takes longer than what a test is about."""


def settle(changes: Mapping[str, Any]) -> None:
    """`quick`: no model is loaded, which a table without documents has no need of but to be slow.
    `commit_seconds`, `commit_rows`: those of the store. `tells`: each lock is named before it is
    asked for. `rewrites`: before a function, by its name, is called for the n-th time, in.csv is
    overwritten in place with new.csv."""
    spare_the_start()
    if changes.get("quick"):
        documents = "mmrag_batch.retrieval.retriever.open_row_documents"
        mock.patch(documents, lambda *_: _NoDocuments()).start()
        mock.patch(
            "mmrag_batch.run.predict.load_bundle", lambda settings: _trust(settings.bundle)
        ).start()
        mock.patch("mmrag_batch.generation.rendering.Renderer", lambda _: RENDERER).start()
    for name in ("commit_seconds", "commit_rows"):
        if name in changes:
            mock.patch.object(store, name.upper(), changes[name]).start()
    if changes.get("tells"):
        find = lock._file_lock

        def tell(path: Path) -> Any:
            print(f"asks for {path.name}", flush=True)  # noqa: T201
            return find(path)

        mock.patch.object(lock, "_file_lock", tell).start()
    for name, count in changes.get("rewrites", {}).items():
        mock.patch(name, _rewriting(pkgutil.resolve_name(name), count)).start()


def make_small_segments(documents: int) -> None:
    """Let a segment of a corpus have as few documents, which are looked up in twos."""
    mock.patch("mmrag_batch.run.corpus_writer.SEGMENT", documents).start()
    mock.patch("mmrag_batch.run.index.BATCH", 2).start()


def spare_the_start() -> None:
    """Let the command in this process know already what it is made of and runs on."""
    mock.patch("mmrag_batch.run.predict.find_versions", VERSIONS.copy).start()
    mock.patch.object(cli, "app", COMMAND).start()


def _rewriting(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            with Path("in.csv").open("r+b") as table:
                table.write(Path("new.csv").read_bytes())
        return function(*arguments, **options)

    return call


class _NoDocuments:
    """Finds no evidence for rows that have no documents."""

    def find(self, rows: Sequence[Row], /) -> list[tuple[Evidence, ...]]:
        assert not any(row.question and row.question.documents for row in rows)
        return [() for _ in rows]


def _trust(path: Path) -> Bundle:
    """A bundle whose files are not hashed once more."""
    return Bundle(path, read_manifest(path))
