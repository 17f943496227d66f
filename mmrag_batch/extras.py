"""Packages that not everybody needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmrag_batch.errors import UnavailableError
from mmrag_batch.machine import install


@contextmanager
def requires(extra: str | None) -> Iterator[None]:
    """Turns a missing package into an UnavailableError that says what to type; None where
    what is missing is not of ours to know."""
    try:
        yield
    except ModuleNotFoundError as error:
        if extra is None or error.name is None or error.name.partition(".")[0] == "mmrag_batch":
            raise
        raise UnavailableError(f"{error.name} is not installed. Run `{install(extra)}`.") from None
