"""No process of vLLM's outlives the one that started it, and keeps the GPU's memory from the next
run. vLLM ends its processes when it is asked to; nobody asks where its own was killed."""

import multiprocessing
import os
import threading
from functools import cache


@cache
def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:  # nobody of ours started it
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()
