"""Decoding with a limit on its time and memory. Images that cost what their size says are decoded
here; others in a helper process, which a costly one ends, and which begins with the first of them.
"""

import atexit
import json
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images.cost import is_plain
from mmrag_batch.images.formats import find_format
from mmrag_batch.images.pixels import decode, settle_warnings

SECONDS = 15
"""Of a processor, for one image; the formats that take longest need 5 for the most pixels."""
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


class Helper:
    """A process that decodes one image at a time, within `seconds` of a processor each and `memory`
    bytes of its address space. Thread-safe."""

    def __init__(self, *, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self._seconds = seconds
        self._memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, kind: str) -> Image.Image:
        """The image. Raises RowError; a helper that dies of an image costs that image alone."""
        with self._lock:
            if self._process is None:
                self._process = _start()
                atexit.register(self.close)
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                _send(process.stdin, self._request(kind), data)
                answer, pixels = _receive(process.stdout)
            except (OSError, ValueError):
                raise self._bury() from None
            except BaseException:  # an interrupted exchange leaves half an answer in the pipe
                self._bury()
                raise
        if "code" in answer:
            raise RowError(answer["code"], answer["message"])
        return Image.frombytes("RGB", tuple(answer["size"]), pixels)

    def _request(self, kind: str) -> dict[str, object]:
        return {"kind": kind, "seconds": self._seconds, "memory": self._memory}

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            atexit.unregister(self.close)
            if self._process is not None:
                self._bury()

    def _bury(self) -> RowError:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.communicate()
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return RowError(
                "image_too_costly", f"decoding it takes over {self._seconds} s, or too much memory"
            )
        return RowError("image_corrupt", "its decoder crashed")


_HELPER = Helper()


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
    while True:
        try:
            asked, data = _receive(sys.stdin.buffer)
        except (ValueError, OSError):
            return
        resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], resource.RLIM_INFINITY))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + asked["seconds"] + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            image = decode(data, asked["kind"])
            _send(sys.stdout.buffer, {"size": image.size}, image.tobytes())
        except RowError as error:
            _send(sys.stdout.buffer, {"code": error.code, "message": str(error)}, b"")


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
