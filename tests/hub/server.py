"""A hub on this machine: what huggingface_hub asks of one for models, over HTTP.

with Hub() as hub:
    hub.add("owner/name", folder, revision="main")
    ...                                             # HF_ENDPOINT=hub.url, HF_HUB_OFFLINE=0
"""

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "tests" * 6
"""The token that may read what is gated or private."""
PIECE = 2**16


@dataclass
class Model:
    """One model: the files of each commit, by path, and what a branch or tag stands for."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    """What the API says of files, by path, where that is not so."""
    page: str = ""
    """What the API answers in place of JSON."""


class Hub:
    """Serves models until it is closed. What it was asked is counted by method and path."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.ranges: list[str] = []
        """The `Range` of each request that had one."""
        self.status = 200
        """Another one is the answer to every request."""
        self.breaks: dict[str, int] = {}
        """How often the connection breaks off in the middle of a file of that name."""
        self.seconds = 0.0
        """How long each piece of a file takes."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, folder: Path, revision: str = "main") -> str:
        """Serve the files below a folder as a new commit of a branch; returns the commit."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        digest = sha1(name.encode())
        for path, data in files.items():
            digest.update(f"{path}\0{sha256(data).hexdigest()}\n".encode())
        commit = digest.hexdigest()
        model = self.models.setdefault(name, Model())
        model.commits[commit] = files
        model.revisions[revision] = commit
        return commit

    def downloads(self) -> list[str]:
        """The files that were asked for, in the order of their names."""
        return sorted(
            path.rpartition("/")[2]
            for (method, path), count in self.asked.items()
            for _ in range(count)
            if method == "GET" and "/resolve/" in path
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: tests say what they need to know."""

    def do_GET(self) -> None:
        """An answer of the API, or a file."""
        self._answer()

    def do_HEAD(self) -> None:
        """What a file would be."""
        self._answer()

    def _answer(self) -> None:
        hub: Hub = self.server.hub
        url = urlsplit(self.path)
        hub.asked[self.command, unquote(url.path)] += 1
        if hub.status != 200:
            self._refuse(hub.status, "", "The hub is out of order.")
            return
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        repo = f"{owner}/{name}"
        model = hub.models.get(repo)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if model is None or (model.private and token != TOKEN):
            # The hub does not tell a stranger what is private from what is not there.
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return
        revision = rest[1] if len(rest) > 1 else "main"
        commit = revision if revision in model.commits else model.revisions.get(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = model.commits[commit]
        if is_api and rest[:1] == ["tree"]:
            self._send_json([{"type": "file", **_entry("path", *file)} for file in files.items()])
        elif is_api and model.page:
            self._send(model.page.encode(), "text/html")
        elif is_api:
            blobs = "blobs" in parse_qs(url.query)
            self._send_json(_info(repo, model, commit, blobs=blobs))
        elif model.gated and token != TOKEN:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to {repo} is restricted.")
        elif (path := "/".join(rest[2:])) not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file(path, files[path], commit)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, values: Any) -> None:
        self._send(json.dumps(values).encode(), "application/json")

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_file(self, path: str, data: bytes, commit: str) -> None:
        hub: Hub = self.server.hub
        start = 0
        if (given := self.headers.get("Range")) is not None:
            hub.ranges.append(given)
            start = int(given.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = len(data)
        if hub.breaks.get(path, 0) > 0:
            hub.breaks[path] -= 1
            stop = start + (stop - start) // 2
            self.close_connection = True
        for begin in range(start, stop, PIECE):
            time.sleep(hub.seconds)
            try:
                self.wfile.write(data[begin : min(begin + PIECE, stop)])
            except OSError:  # who asked has gone
                self.close_connection = True
                return


def _entry(key: str, path: str, data: bytes) -> dict[str, Any]:
    return {key: path, "size": len(data), "oid": sha1(data).hexdigest()}


def _info(repo: str, model: Model, commit: str, *, blobs: bool) -> dict[str, Any]:
    files = model.commits[commit]
    _, _, card = files.get("README.md", b"").decode().partition("---\n")
    siblings = [_entry("rfilename", *file) for file in files.items()]
    for one in siblings:
        one["size"] = model.sizes.get(one["rfilename"], one["size"])
    return {
        "id": repo,
        "sha": commit,
        "private": model.private,
        "gated": "manual" if model.gated else False,
        "tags": [],
        "cardData": yaml.safe_load(card.partition("\n---")[0]) or {},
        "siblings": siblings if blobs else [{"rfilename": path} for path in files],
    }
