"""What was used last, within so many bytes."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by key, the least recently used of them dropped first. Thread-safe."""

    def __init__(self, max_bytes: int, max_items: int) -> None:
        self._max_bytes = max_bytes
        self._max_items = max_items
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        """The value under a key, which is now the one used last."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: V, size: int) -> None:
        """Keep a value of `size` bytes; one that is over the limit by itself is not kept."""
        with self._lock:
            self._bytes += size - self._values.pop(key, (value, 0))[1]
            self._values[key] = value, size
            while self._bytes > self._max_bytes or len(self._values) > self._max_items:
                _, (_, evicted) = self._values.popitem(last=False)
                self._bytes -= evicted
