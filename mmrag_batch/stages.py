"""What the stages of a run agree on: their one method, where images come from, and how one
stage works ahead of the next."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from mmrag_batch.records import Row

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
STALLED = threading.Event()
"""Set while a stage waits for something elsewhere, without which it can finish no row: a run that
is stopped then has nothing to wait for."""


class Stage(Protocol):
    """Rows in, the same rows out, each with this stage's part filled in.

    A stage may hold back and reorder rows, but never drops one: given a row and the `window - 1`
    after it, it gives that row back without asking for another. A row that carries an error passes
    through untouched.
    """

    window: int

    def __call__(self, rows: Iterable[Row], /) -> Iterator[Row]: ...


OpenStage = Callable[[], AbstractContextManager[Stage]]
"""Loads a stage where it is to run, and closes it in the end."""


class Page(NamedTuple):
    """A page of a PDF: its source, as that of an image, and its text, if it has one."""

    source: str
    text: str | None


class ImageStore(Protocol):
    """Where stages get images from. All methods raise `RowError` for a source they cannot use."""

    def digest(self, source: str) -> str:
        """The SHA-256 (hex) of the image's bytes, found without decoding them."""
        ...

    def load(self, source: str) -> "Image":
        """The decoded image, upright and in RGB."""
        ...

    def pages(self, source: str) -> tuple[Page, ...]:
        """The pages of a PDF, or the one that the source names; none of any other image."""
        ...


def pixel_bytes(image: "Image") -> int:
    """What a decoded image takes in memory: Pillow keeps RGB in four bytes a pixel."""
    return 4 * image.width * image.height


@contextmanager
def open_stages(stages: Iterable[OpenStage]) -> Iterator[list[Stage]]:
    """The stages, opened one after the other and closed together."""
    with ExitStack() as opened:
        yield [opened.enter_context(open_stage()) for open_stage in stages]


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one perhaps shorter; as lazily as that allows."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def prefetch(
    items: Iterable[T],
    depth: int,
    *,
    size_of: Callable[[T], int] = lambda _: 0,
    budget: int = 0,
) -> Generator[T, None, None]:
    """Yield `items` in order while a thread works up to `depth` of them ahead, or as many as take
    `budget` bytes together by `size_of`, and one in any case.

    An exception raised by `items` is raised here, after the items before it. When the consumer
    stops early, the thread stops at its next item, and is waited for.
    """
    ready: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    taken: SimpleQueue[bool] = SimpleQueue()  # one for each item that was taken; False: stop
    waiting: deque[int] = deque()  # the sizes of items that may not have been taken

    def work() -> None:
        try:
            for item in items:
                size = size_of(item)
                while len(waiting) >= depth or (waiting and sum(waiting) + size > budget):
                    if not taken.get():
                        return
                    waiting.popleft()
                if stopped.is_set():
                    return
                waiting.append(size)
                ready.put((item,))
            ready.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            ready.put(error)

    stopped = threading.Event()
    worker = threading.Thread(target=work, name="prefetch", daemon=True)
    worker.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            taken.put(True)
            yield entry[0]
    finally:
        stopped.set()
        taken.put(False)
        worker.join()
