"""Decoding with a limit on its time and memory. Images that cost what their size says are decoded
here; others in a helper process, which a costly one ends, and which begins with the first of them.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images import pdf
from mmrag_batch.images.cost import is_plain
from mmrag_batch.images.formats import find_format
from mmrag_batch.images.pixels import decode, settle_warnings

SECONDS = 15
"""Of a processor, for one image; the formats that take longest need 5 for the most pixels."""
TEXT_SECONDS = 4 * SECONDS
"""For the texts of all pages of a PDF."""
MEMORY = 3 * 2**30
"""Bytes of the helper's address space."""
_START = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from mmrag_batch.images.guard import serve; serve()"
)


def decode_within_limits(data: bytes) -> Image.Image:
    """What `decode` gives. Raises RowError also for `image_too_costly`."""
    kind = find_format(data)
    return decode(data, kind) if is_plain(kind, data) else _HELPER.decode(data, kind)


def render_within_limits(data: bytes, page: int) -> Image.Image:
    """What `pdf.render` gives, in the same way."""
    return _HELPER.decode(data, "PDF", page)


def read_texts_within_limits(data: bytes, page: int | None) -> list[str | None]:
    """What `pdf.read_texts` gives, in the same way."""
    return _HELPER.read_texts(data, page)


class Helper:
    """A process that decodes one image at a time, within `seconds` of a processor each and `memory`
    bytes of its address space, or reads the texts of a PDF within `text_seconds`. Thread-safe."""

    def __init__(
        self, *, seconds: int = SECONDS, text_seconds: int = TEXT_SECONDS, memory: int = MEMORY
    ) -> None:
        self._seconds = seconds
        self._text_seconds = text_seconds
        self._memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._held: bytes | None = None
        """The file that the process was sent last, which it keeps: a PDF is asked for each page."""

    def decode(self, data: bytes, kind: str, page: int | None = None) -> Image.Image:
        """The image, of a PDF that of a page. Raises RowError; a helper that dies of an image costs
        that image alone."""
        request = {"kind": kind, "page": page, "seconds": self._seconds}
        answer, pixels = self._ask(request, data)
        return Image.frombytes("RGB", tuple(answer["size"]), pixels)

    def read_texts(self, data: bytes, page: int | None) -> list[str | None]:
        """The texts of a PDF. Raises RowError in the same way."""
        request = {"kind": "texts", "page": page, "seconds": self._text_seconds}
        texts: list[str | None] = json.loads(self._ask(request, data)[1])
        return texts

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            if self._process is None:
                self._process = _start()
                atexit.register(self.close)
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            is_held = data is self._held
            head = {**request, "memory": self._memory, "is_held": is_held}
            self._held = data
            try:
                _send(process.stdin, head, b"" if is_held else data)
                answer, body = _receive(process.stdout)
            except (OSError, ValueError):
                raise self._bury(request["seconds"]) from None
            except BaseException:  # an interrupted exchange leaves half an answer in the pipe
                self._bury()
                raise
        if "code" in answer:
            raise RowError(answer["code"], answer["message"])
        return answer, body

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            atexit.unregister(self.close)
            if self._process is not None:
                self._bury()

    def forget(self) -> None:
        """After a fork: the process and its pipes are the parent's. This one starts its own."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0  # nobody here has to wait for it
        self._process, self._held = None, None

    def _bury(self, seconds: int = 0) -> RowError:
        process, self._process, self._held = self._process, None, None
        assert process is not None
        process.kill()
        process.communicate()
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return RowError(
                "image_too_costly", f"decoding it takes over {seconds} s, or too much memory"
            )
        return RowError("image_corrupt", "its decoder crashed")


_HELPER = Helper()
os.register_at_fork(after_in_child=_HELPER.forget)


def _start() -> "subprocess.Popen[bytes]":
    # In a session of its own: a signal to the group of a run is no failure of an image.
    return subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[2])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def serve() -> None:
    """The helper: answers until its input ends, as it does when a run ends in whatever way."""
    settle_warnings()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the limit on its time would leave one
    data = b""
    while True:
        try:
            asked, body = _receive(sys.stdin.buffer)
        except (ValueError, OSError):
            return
        data = data if asked["is_held"] else body
        resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], resource.RLIM_INFINITY))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + asked["seconds"] + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            head, body = _answer(asked["kind"], asked["page"], data)
            _send(sys.stdout.buffer, head, body)
        except RowError as error:
            _send(sys.stdout.buffer, {"code": error.code, "message": str(error)}, b"")


def _answer(kind: str, page: int | None, data: bytes) -> tuple[dict[str, object], bytes]:
    if kind == "texts":
        return {}, json.dumps(pdf.read_texts(data, page)).encode()
    image = decode(data, kind) if page is None else pdf.render(data, page)
    return {"size": image.size}, image.tobytes()


def _send(stream: IO[bytes], head: dict[str, object], body: bytes) -> None:
    stream.write(json.dumps(head | {"bytes": len(body)}).encode() + b"\n")
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """A head and a body. Raises ValueError where the stream ends before."""
    head = json.loads(stream.readline())
    body = stream.read(head["bytes"])
    if len(body) != head["bytes"]:
        raise ValueError("the stream ended")
    return head, body
