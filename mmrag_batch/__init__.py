"""mmrag-batch: a batch job that answers visual questions with retrieved evidence.

Importing this package loads no torch, transformers, onnxruntime, vllm or pandas. What it offers to
programs (`__init__.pyi`) is in `api.py`, and imported when it is asked for.
"""

from importlib import import_module

__version__ = "0.1.0"
_OFFERED = ("Bundle", "evaluate", "open_bundle", "predict", "read_answers")


def __getattr__(name: str) -> object:
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.api"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
