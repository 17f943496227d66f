"""A Qdrant server for tests: the local mode of qdrant-client behind the paths that the client asks.

No package has the server itself. What it keeps and finds is the local mode's, which searches
exactly, in numpy; what it is asked, and what it answers, are the client's own models, over HTTP.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from time import sleep
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

PATH = re.compile(r"/collections/(\w+)(/points.*?)?(?:\?.*)?")


class Server:
    """What is in it, and how it behaves: `failures` are the statuses of the next answers; `key` is
    what it takes; `seconds` are those that an answer takes it."""

    def __init__(self) -> None:
        self.local = QdrantClient(":memory:")
        self.failures: list[int] = []
        self.asked: list[str] = []
        self.key = ""
        self.seconds = 0.0
        self.url = ""

    def answer(self, method: str, path: str, body: Any) -> Any:
        """What the server says to a request. Raises KeyError for a collection that there is not."""
        match = PATH.fullmatch(path)
        assert match is not None, path
        name, rest = match[1], match[2] or ""
        self.asked.append(f"{method} {rest}")
        local = self.local
        if (method, rest) == ("PUT", ""):
            vectors = models.VectorParams.model_validate(body["vectors"])
            return local.create_collection(name, vectors, metadata=body["metadata"])
        if not local.collection_exists(name):
            raise KeyError(name)
        if (method, rest) == ("GET", ""):
            return local.get_collection(name)
        if (method, rest) == ("PATCH", ""):
            return local.update_collection(name, metadata=body["metadata"])
        if (method, rest) == ("PUT", "/points"):
            return local.upsert(name, models.PointsList.model_validate(body).points)
        if (method, rest) == ("POST", "/points"):
            return local.retrieve(name, body["ids"], with_payload=body["with_payload"])
        if rest == "/points/count":
            return local.count(name, exact=body["exact"])
        if rest == "/points/delete":
            return local.delete(name, body["points"])
        if rest == "/points/scroll":
            points, offset = local.scroll(
                name, limit=body["limit"], offset=body.get("offset"), with_payload=False
            )
            return models.ScrollResult(points=points, next_page_offset=offset)
        assert rest == "/points/query/batch", rest
        requests = TypeAdapter(list[models.QueryRequest]).validate_python(body["searches"])
        assert all(one.params and one.params.exact for one in requests)
        return local.query_batch_points(name, requests)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on this machine, empty."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            sleep(server.seconds)
            if server.failures:
                self.say(server.failures.pop(0), {"status": {"error": "out of order"}})
            elif self.headers.get("api-key", "") != server.key:
                self.say(401, {"status": {"error": f"no {self.headers.get('api-key')!r} here"}})
            else:
                try:
                    result = server.answer(self.command, self.path, body)
                except KeyError as error:
                    self.say(404, {"status": {"error": f"no collection {error}"}})
                    return
                dumped = TypeAdapter(Any).dump_python(result, mode="json", exclude_none=True)
                self.say(200, {"result": dumped, "status": "ok", "time": 0.0})

        do_GET = do_PUT = do_POST = do_PATCH = handle_any  # noqa: N815

        def say(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        server.url = f"qdrant+http://127.0.0.1:{listening.server_port}"
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
            server.local.close()
