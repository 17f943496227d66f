"""Images from the web: only from hosts that are named, only at public addresses, with limits.

A real server on the loopback address, which is not public, so most tests allow that address.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images import loader as module
from mmrag_batch.images.fetch import Address, MediaFetcher, is_public
from mmrag_batch.images.loader import ImageLoader


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts what it is asked for."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        buffer = BytesIO()
        Image.new("RGB", (4, 2), "red").save(buffer, "PNG")
        body = buffer.getvalue()
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 5 * (self.path == "/short")))
        self.end_headers()
        if self.path != "/slow":
            self.wfile.write(body)
            return
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that gives up is what some tests are about."""


@pytest.fixture
def url() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Handler)
    Handler.asked.clear()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetcher(*hosts: str, seconds: float = 5, max_bytes: int = 10_000) -> MediaFetcher:
    return MediaFetcher(hosts, max_bytes=max_bytes, seconds=seconds, is_allowed=lambda _: True)


def code_of(fetch: MediaFetcher, url: str) -> str:
    with pytest.raises(RowError) as caught:
        fetch(url)
    return caught.value.code


def test_g12_an_image_of_an_allowed_host_is_fetched(url: str) -> None:
    data = fetcher("example.org", "LocalHost")(url + "/a.png?size=2")
    assert Image.open(BytesIO(data)).size == (4, 2)
    assert Handler.asked == ["/a.png?size=2"]


@pytest.mark.parametrize(
    ("path", "code"),
    [("/away", "image_denied"), ("/absent", "image_missing"), ("/short", "image_missing")],
)
def test_g12_redirects_and_failures_are_refused(url: str, path: str, code: str) -> None:
    assert code_of(fetcher("localhost"), url + path) == code
    assert Handler.asked == [path]


def test_g12_a_host_that_is_not_named_is_not_asked(url: str) -> None:
    allowed = fetcher("host", "localhost.example.org")
    assert code_of(allowed, url + "/a.png") == "image_denied"
    assert code_of(fetcher("localhost"), url.replace("localhost", "127.0.0.1")) == "image_denied"
    assert code_of(fetcher("localhost"), url.replace("//", "//me:pw@")) == "image_denied"
    assert code_of(fetcher("localhost"), url.replace("http", "ftp")) == "image_denied"
    assert code_of(fetcher("localhost"), "http://localhost:x/") == "image_denied"
    assert Handler.asked == []


def test_g12_an_allowed_host_at_a_private_address_is_not_asked(url: str) -> None:
    fetch = MediaFetcher(["localhost"], max_bytes=10_000)
    with pytest.raises(RowError, match=r"localhost is at .* not public") as caught:
        fetch(url + "/a.png")
    assert caught.value.code == "image_denied"
    assert Handler.asked == []


def test_g12_the_address_that_was_checked_is_the_one_connected_to(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes its address after the check (DNS rebinding) reaches nothing."""
    port = int(url.rpartition(":")[2])
    answers = iter(["127.0.0.1", "192.0.2.1"])
    checked: list[str] = []

    def look_up(*_: object, **__: object) -> list[object]:
        where = (next(answers), port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where)]

    def allows(address: Address) -> bool:
        checked.append(str(address))
        monkeypatch.undo()  # what connects now looks nothing up: it is given an address
        return True

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fetch = MediaFetcher(["rebound.example"], max_bytes=10_000, is_allowed=allows)
    assert fetch(f"http://rebound.example:{port}/a.png").startswith(b"\x89PNG")
    assert checked == ["127.0.0.1"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "ff02::1",
    ],
)
def test_g12_addresses_that_are_not_of_the_internet_are_known(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("private", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.0.1"])
@pytest.mark.parametrize(
    "form",
    [
        "::{a:02x}{b:02x}:{c:02x}{d:02x}",
        "::ffff:{a:02x}{b:02x}:{c:02x}{d:02x}",
        "64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}",
        "64:ff9b:1::{a:02x}{b:02x}:{c:02x}{d:02x}",
        "64:ff9b:1:{a:02x}{b:02x}:{c:02x}:{d:02x}00::",
        "2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1",
        "2001:0:1:1:1:1:{a:02x}{b:02x}:{c:02x}{d:02x}",
        "2606:4700::5efe:{a:02x}{b:02x}:{c:02x}{d:02x}",
        "2606:4700::200:5efe:{a:02x}{b:02x}:{c:02x}{d:02x}",
    ],
)
def test_n02_ipv6_addresses_that_carry_a_private_one_are_not_connected_to(
    form: str, private: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d = map(int, private.split("."))
    answer = (form.format(a=a, b=b, c=c, d=d), 80, 0, 0)
    tried: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(10, 1, 6, "", answer)])
    monkeypatch.setattr(socket, "create_connection", lambda *at, **_: tried.append(at))
    fetch = MediaFetcher(["rebound.example"], max_bytes=10)
    assert code_of(fetch, "http://rebound.example/a.png") == "image_denied"
    assert tried == []


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111"])
def test_addresses_of_the_internet_are_known(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_g12_bytes_and_seconds_are_limited(url: str) -> None:
    assert code_of(fetcher("localhost", max_bytes=20), url + "/a.png") == "image_too_large"
    started = time.monotonic()
    assert code_of(fetcher("localhost", seconds=0.4), url + "/slow") == "image_missing"
    assert time.monotonic() - started < 2  # every byte of it comes well within the limit


def test_a_server_that_is_not_there_is_missing() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://localhost:{unused.getsockname()[1]}/a.png"
        assert code_of(fetcher("localhost"), url) == "image_missing"
    assert code_of(fetcher("none.invalid"), "https://none.invalid/a.png") == "image_missing"


def test_g12_the_loader_fetches_once_and_only_what_is_allowed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MediaFetcher", lambda hosts, max_bytes: fetcher(*hosts))
    loader = ImageLoader(tmp_path, hosts=["localhost"])
    digest = loader.digest(url + "/a.png")
    assert loader.load(url + "/a.png").getpixel((0, 0)) == (255, 0, 0)
    assert loader.digest(url + "/a.png") == digest
    assert Handler.asked == ["/a.png"]
    with pytest.raises(RowError, match="not allowed; allowed: localhost"):
        loader.load("https://example.org/a.png")
    with pytest.raises(RowError, match="--allow-media-domain"):
        ImageLoader(tmp_path).load(url + "/a.png")
