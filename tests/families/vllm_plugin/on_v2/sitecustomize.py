"""Python reads this first, in each process of vLLM's: Triton's kernels are interpreted, and vLLM is
shown a device that has a driver, which is what it asks for before it takes its second runner."""

import importlib
import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
backends = importlib.import_module("triton.backends").backends
for backend in backends.values():
    backend.driver.is_active = staticmethod(lambda: False)
backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
