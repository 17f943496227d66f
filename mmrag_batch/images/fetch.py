"""Images from the web, for a run that allows it: named hosts only, public addresses only, no
redirects, so many bytes and seconds at most."""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, urlsplit

from mmrag_batch.errors import RowError

SECONDS = 30.0
"""Most time for one image, from looking up its host to its last byte."""
_WITH_IPV4 = tuple(
    map(ipaddress.ip_network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16"))
)
"""IPv6 addresses that carry one of IPv4, which may be private: IPv4-compatible (RFC 4291), NAT64
(RFC 6052, 8215), Teredo (RFC 4380), 6to4 (RFC 3056). No image is at one of them."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""What an interface of RFC 5214 begins with; its IPv4 address follows."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet, and not of this machine, its network or cloud."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    is_isatap = int(address) >> 32 & 0xFFFFFFFF in _ISATAP
    return not (is_isatap or address.is_site_local or any(address in net for net in _WITH_IPV4))


class MediaFetcher:
    """Fetches what `http` and `https` URLs of `hosts` name; the environment's proxies are ignored.

    The host is looked up once and the connection made to the address that was checked, so a name
    that changes its address in between reaches nothing. Raises RowError: `image_denied`,
    `image_missing`, `image_too_large`.
    """

    def __init__(
        self,
        hosts: Collection[str],
        *,
        max_bytes: int,
        seconds: float = SECONDS,
        is_allowed: Callable[[Address], bool] = is_public,
    ) -> None:
        self._hosts = frozenset(host.strip().lower() for host in hosts)
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._is_allowed = is_allowed

    def __call__(self, url: str) -> bytes:
        """The bytes at `url`."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
        except ValueError as error:
            raise RowError("image_denied", f"no usable URL: {error}") from None
        self._check(parts)
        try:
            return self._fetch(parts, port)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise RowError("image_missing", f"cannot be fetched: {error!r}") from None

    def _check(self, parts: SplitResult) -> None:
        if parts.scheme.lower() not in ("http", "https") or "@" in parts.netloc:
            raise RowError("image_denied", "expected http(s)://host/path, no password")
        if (parts.hostname or "") not in self._hosts:
            allowed = ", ".join(sorted(self._hosts))
            raise RowError("image_denied", f"its host is not allowed; allowed: {allowed}")

    def _fetch(self, parts: SplitResult, port: int) -> bytes:
        host = parts.hostname or ""
        connection = http.client.HTTPConnection(host, port)
        connection.sock = self._connect(host, port, secure=parts.scheme.lower() == "https")
        # A timeout of the socket would start anew with every byte of a server that dawdles.
        timer = threading.Timer(self._seconds, connection.sock.shutdown, [socket.SHUT_RDWR])
        timer.daemon = True
        timer.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*, application/pdf"})
            with connection.getresponse() as response:
                return self._read(response)
        finally:
            timer.cancel()
            connection.close()

    def _connect(self, host: str, port: int, *, secure: bool) -> socket.socket:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, socket_address in addresses:
            address = ipaddress.ip_address(str(socket_address[0]).partition("%")[0])
            if not self._is_allowed(address):
                raise RowError("image_denied", f"{host} is at {address}, which is not public")
        tcp_socket = socket.create_connection(
            (str(addresses[0][4][0]), port), timeout=self._seconds
        )
        if not secure:
            return tcp_socket
        return ssl.create_default_context().wrap_socket(tcp_socket, server_hostname=host)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        if 300 <= response.status < 400:
            raise RowError("image_denied", "redirects are not followed; give its target")
        if response.status != http.client.OK:
            raise RowError("image_missing", f"the server says {response.status}")
        data = response.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            raise RowError("image_too_large", f"over {self._max_bytes >> 20} MiB")
        if response.length:
            raise RowError("image_missing", f"ends {response.length:,} bytes too early")
        return data
