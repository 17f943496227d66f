"""An object store on this machine, and what it was asked: moto in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
SECRET = "a-key-that-nobody-may-see"
_REQUEST = re.compile(r'"(?:\x1b\[\d+m)*([A-Z]+) (/\S*) HTTP')
_NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of a test's own."""

    name: str
    log: Path
    files: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def write(self, key: str, data: bytes) -> str:
        """Put an object there; its URL."""
        self.files.pipe_file(f"{self.url}/{key}", data)
        return f"{self.url}/{key}"

    def read(self, key: str) -> bytes:
        data: bytes = self.files.cat_file(f"{self.url}/{key}")
        return data

    def names(self) -> set[str]:
        """The keys of all that is there."""
        self.files.invalidate_cache()
        return {path.removeprefix(f"{self.name}/") for path in self.files.find(self.url)}

    def requests(self, of: str = "/bucket") -> list[str]:
        """What the server was asked so far of paths that begin so: `GET /bucket/key`."""
        asked = _REQUEST.findall(self.log.read_text())
        return [f"{method} {path}" for method, path in asked if path.startswith(of)]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server that the environment names; the log of its requests."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    import s3fs

    log = tmp_path_factory.mktemp("s3") / "requests.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert server.stdout is not None
        port = int(server.stdout.readline())
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        s3fs.S3FileSystem.clear_instance_cache()  # one of another endpoint
        yield log
        assert server.stdin is not None
        server.stdin.close()
        server.terminate()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(s3_server: Path) -> Bucket:
    """A new bucket on that server."""
    import fsspec

    files = fsspec.filesystem("s3")
    name = f"bucket-{next(_NUMBERS)}"
    files.mkdir(name)
    return Bucket(name, s3_server, files)
