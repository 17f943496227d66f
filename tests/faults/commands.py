"""Commands in processes of their own, for the price of a fork, on a disk that fails on time.

    with Commands() as commands:
        done = commands.run("predict", "in.csv", "out.csv", folder=folder, fault=Fault(at=7))

A server has imported what commands need; it forks for each of them. In its processes libc is that
of disk.c, which counts what is done to the disk, by Python and by SQLite alike, and fails.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self, get_args

from tqdm import tqdm

ROOT = Path(__file__).parent.parent.parent
NAMES = frozenset("write sync truncate create rename unlink link mkdir rmdir".split())
Kind = Literal["kill", "torn", "power"]
KINDS: tuple[Kind, ...] = get_args(Kind)
UP_FRONT = """
    mmrag_batch.cli.app numpy onnxruntime tokenizers PIL.Image sqlite3 multiprocessing
""".split()
WHEN_CALLED = """
    typer._adapters filelock mmrag_batch.factory mmrag_batch.run.predict mmrag_batch.run.merge
    mmrag_batch.run.status mmrag_batch.run.index mmrag_batch.generation.answerer
    mmrag_batch.generation.engines.scripted mmrag_batch.generation.engines.scripted_worker
    mmrag_batch.retrieval.retriever mmrag_batch.retrieval.sessions mmrag_batch.retrieval.embedder
    mmrag_batch.images.loader
""".split()
"""What commands load when they are called. It saves time to have it, and one that is broken or not
there is theirs to report."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at operation `at`, counted from 0; -1 is never.

    `kill`: the process dies before it. `torn`: half of a write is done, then it dies. `power`: as
    `kill`, and what was not yet synced is lost. The number of an OSError: this and every later
    operation fails with it.
    """

    at: int
    kind: Kind | int = "kill"
    only: str = ""
    """Count operations of these names only, as in `write,sync`."""

    def __post_init__(self) -> None:
        if strange := set(filter(None, self.only.split(","))) - NAMES:
            raise ValueError(f"{strange}: not names of operations; there are {sorted(NAMES)}")


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    """Its exit code, or the negative number of the signal that ended it."""
    output: str
    """What it wrote to stdout and stderr."""
    operations: tuple[str, ...]
    """As in `write out.csv`, with `.` for the folder itself; the last of a killed one was not done.
    Empty unless they were asked for."""


@dataclass(frozen=True, slots=True)
class _Request:
    arguments: list[str]
    folder: str
    environ: dict[str, str]
    hook: str | None
    hook_argument: object
    armed: bool
    at: int
    kind: int
    error: int
    only: str


@dataclass(slots=True)
class Running:
    """A command that was started."""

    pid: int
    _arguments: list[str]
    _reply: socket.socket
    _output: int
    _log: int
    _done: Done | None = None

    def send_signal(self, number: int) -> None:
        """Send the process a signal; nothing happens if it has ended."""
        if self._done is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    @property
    def output(self) -> str:
        """What it has written to stdout and stderr so far."""
        return _read(self._output) if self._done is None else self._done.output

    def wait(self, within: float = 60.0) -> Done:
        """How it ended. Raises TimeoutError, and kills it, if it does not in so many seconds."""
        if self._done is not None:
            return self._done
        self._reply.settimeout(within)
        try:
            status = self._reply.recv(64)
        except TimeoutError:
            _kill(self.pid)
            message = f"{self._arguments} did not end within {within} s:\n{self.output}"
            self.close()
            raise TimeoutError(message) from None
        if not status:
            raise RuntimeError("the server of commands has ended")
        operations = tuple(_read(self._log).splitlines())
        self._done = Done(os.waitstatus_to_exitcode(int(status)), self.output, operations)
        self.close()
        return self._done

    def close(self) -> None:
        """Forget about it."""
        if self._reply.fileno() >= 0:
            self._reply.close()
            os.close(self._output)
            os.close(self._log)


@dataclass(slots=True)
class Commands:
    """Starts commands as the console script would. Needs Linux and a C compiler."""

    _control: socket.socket = field(init=False)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)
    _started: list[Running] = field(init=False, default_factory=list)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            disk = compile_disk(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(self._control)
            environ = {
                "LD_PRELOAD": str(disk),
                "OPENBLAS_NUM_THREADS": "1",  # a fork takes no other threads along
                "TOKENIZERS_PARALLELISM": "false",
            }
            with theirs:
                server = subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.commands", str(theirs.fileno())],
                    cwd=ROOT,
                    env=os.environ | environ,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for who waits for it
                )
            stack.callback(server.wait)
            stack.callback(self._control.close)  # which ends it
            if not self._control.recv(64):
                raise RuntimeError("the server of commands did not start")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server, and the commands that have not ended."""
        self._stack.close()
        for running in self._started:
            running.close()

    def run(
        self,
        *arguments: object,
        folder: Path,
        fault: Fault | None = None,
        environ: Mapping[str, str] = {},
        hook: str | None = None,
        hook_argument: object = None,
        within: float = 60.0,
        log: bool = False,
    ) -> Done:
        """Run a command; see `start`. Raises TimeoutError if it does not end `within` seconds."""
        return self.start(
            *arguments,
            folder=folder,
            fault=fault,
            environ=environ,
            hook=hook,
            hook_argument=hook_argument,
            log=log,
        ).wait(within)

    def start(
        self,
        *arguments: object,
        folder: Path,
        fault: Fault | None = None,
        environ: Mapping[str, str] = {},
        hook: str | None = None,
        hook_argument: object = None,
        log: bool = False,
    ) -> Running:
        """Start a command in `folder`, which is also the one that is watched.

        `environ` is added to its environment. `hook`, as `module:function`, is called in its
        process with `hook_argument`, through JSON, before anything is counted; a hook that replaces
        `mmrag_batch.cli.app.main` runs in place of the command. With `log` its operations are kept.
        """
        fault = fault or Fault(at=-1)
        words = [str(argument) for argument in arguments]
        request = _Request(
            arguments=words,
            folder=str(folder.resolve()),
            environ=dict(environ),
            hook=hook,
            hook_argument=hook_argument,
            armed=log or fault.at >= 0,
            at=fault.at,
            kind=len(KINDS) if isinstance(fault.kind, int) else KINDS.index(fault.kind),
            error=fault.kind if isinstance(fault.kind, int) else 0,
            only=fault.only,
        )
        output, kept = os.memfd_create("output"), os.memfd_create("operations")
        reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = json.dumps([asdict(request), log]).encode()
        with self._lock:
            with theirs:
                socket.send_fds(self._control, [message], [theirs.fileno(), output, kept])
            pid = int(reply.recv(64) or -1)
            running = Running(pid, words, reply, output, kept)
            self._started = [*(one for one in self._started if one._done is None), running]
        if pid < 0:
            raise RuntimeError("the server of commands has ended")
        return running


def why_not() -> str | None:
    """Why commands cannot be run here, or None."""
    if sys.platform != "linux":
        return "the disk that fails is a library for Linux"
    return None if _compiler() else "no C compiler"


def compile_disk(folder: Path) -> Path:
    """Compile disk.c in a folder. Raises CalledProcessError with the compiler's complaints."""
    library = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([_compiler() or "cc", *flags, "-o", library, source, "-ldl"], check=True)
    return library


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def _read(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")


def _kill(pid: int) -> None:
    """Kill a command and what it started, as far as that is still in its process group."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


# The server. -----------------------------------------------------------------------------------


class _Server:
    """Forks for each request until who asks has gone."""

    def __init__(self, control: socket.socket) -> None:
        self._disk = ctypes.CDLL(os.environ.pop("LD_PRELOAD"))
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> None:
        # tqdm's own lock is shared with all forks: one that is killed keeps it from the others.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0  # a thread that might have it when it is forked
        for module in UP_FRONT:
            importlib.import_module(module)
        for module in WHEN_CALLED:
            with suppress(Exception):
                importlib.import_module(module)
        gc.freeze()
        self._control.send(b"ready")
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._reap(key.fd, *key.data)
                elif not self._answer():
                    return self._end()

    def _answer(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, 2**20, 3)
        if not message:
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        answer, output, log = descriptors
        reply = socket.socket(fileno=answer)
        fields, wants_log = json.loads(message)
        request = _Request(**fields)
        if request.hook is not None:  # here, so that the next one has it already
            with suppress(Exception):
                importlib.import_module(request.hook.partition(":")[0])
        pid = os.fork()
        if pid == 0:
            self._control.close()
            for key in list(self._selector.get_map().values()):
                if key.data is not None:
                    os.close(key.fd)
                    key.data[1].close()
            self._selector.close()
            reply.close()
            _become(request, self._disk, output, log if wants_log else -1)
        os.close(output)
        os.close(log)
        with suppress(BrokenPipeError):
            reply.send(str(pid).encode())
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, reply))
        return True

    def _reap(self, descriptor: int, pid: int, reply: socket.socket) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with reply, suppress(BrokenPipeError):
            reply.send(str(status).encode())

    def _end(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                _kill(key.data[0])
                self._reap(key.fd, *key.data)


def _become(request: _Request, disk: ctypes.CDLL, output: int, log: int) -> NoReturn:
    """Be the process of a command, from a fork on to its end."""
    code = 1
    try:
        _settle(request, output)
        if request.hook is not None:
            module, _, name = request.hook.partition(":")
            getattr(importlib.import_module(module), name)(request.hook_argument)
        if request.armed:
            arm = disk.disk_arm
            arm.argtypes = [
                ctypes.c_char_p,
                ctypes.c_long,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_char_p,
                ctypes.c_int,
            ]
            where, only = os.fsencode(request.folder), request.only.encode()
            arm(where, request.at, request.kind, request.error, only, log)
        code = _call()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    _finish()
    os._exit(code & 0xFF)


def _settle(request: _Request, output: int) -> None:
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    os.chdir(request.folder)
    os.environ.update(request.environ)
    sys.argv = ["mmrag-batch", *request.arguments]


def _call() -> int:
    """The console script: its exit code."""
    cli = importlib.import_module("mmrag_batch.cli.app")
    try:
        cli.main()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        _finish()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0


def _finish() -> None:
    """What the interpreter does at its end, as far as others see it."""
    for step in (
        threading._shutdown,  # type: ignore[attr-defined]
        atexit._run_exitfuncs,
        sys.stdout.flush,
        sys.stderr.flush,
    ):
        try:
            step()
        except BaseException:
            sys.excepthook(*sys.exc_info())


if __name__ == "__main__":
    _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
