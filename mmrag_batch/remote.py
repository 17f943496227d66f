"""What lies on an object store: named by `s3://`, `gs://` or `hf://`, opened by fsspec's drivers.

A driver finds its endpoint and its credentials as its own documentation says. None is imported, and
no store asked, before something there is to be read or written.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrag_batch.errors import (
    DeniedError,
    MissingError,
    MmragError,
    StorageError,
    UnavailableError,
)
from mmrag_batch.masking import mask

DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
PLACE = rf"({'|'.join(DRIVERS)})://[^/,\s]+(/[^,]*)?"
"""What a bucket, or a folder of one, is called."""
_URL = re.compile(rf"({'|'.join(DRIVERS)}):/(?:/|(?=[^/]))(.*)", re.IGNORECASE | re.DOTALL)
VERSION = ("size", "ETag", "etag", "generation", "VersionId", "blob_id", "last_commit")
"""What the drivers call that by which one version of an object is told from another."""
SECONDS = 60.0
"""Most time for a question to a store."""


def find_url(name: str | Path) -> str | None:
    """The URL that a name is, if it is one of an object store; a Path has lost a slash of it."""
    match = _URL.fullmatch(str(name))
    return f"{match[1].lower()}://{match[2]}" if match else None


def check_driver(url: str) -> None:
    """Raise UnavailableError unless the driver of a URL is installed."""
    for package in ("fsspec", DRIVERS[url.partition(":")[0]]):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(
                f"{mask(url)} needs {package}, which is not installed. Run `pip install {package}`."
            )


def is_below(url: str, place: str) -> bool:
    """Whether an object is `place` or lies below it, by whole names: `s3://b/cat` is not below
    `s3://b/c`. Nothing with `.` or `..` in it is below anything."""
    parts, above = url.split("/"), place.rstrip("/").split("/")
    return parts[: len(above)] == above and not {".", ".."} & set(parts)


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """Turns what a driver raises into an error of ours. Each has kinds of its own."""
    try:
        yield
    except MmragError:
        raise
    except FileNotFoundError:
        raise MissingError(f"There is no {mask(url)}.") from None
    except PermissionError as error:
        raise DeniedError(f"{mask(url)} is closed to these credentials: {error}.") from None
    except Exception as error:
        what = str(error) or type(error).__name__
        raise UnavailableError(
            mask(f"{url} cannot be reached: {what}. Run again once it can.")
        ) from None


def _open(url: str) -> Any:
    """The file system of a URL."""
    check_driver(url)
    import fsspec

    # By its scheme alone: a URL with `::` in it would name a chain of file systems.
    return fsspec.filesystem(url.partition(":")[0])


def _within(system: Any, seconds: float) -> dict[str, float]:
    """What limits the time of a call; drivers that wait in this thread have limits of their own."""
    return {"timeout": seconds} if system.async_impl else {}


def find_version(url: str) -> dict[str, Any]:
    """Size and version of an object, to be compared. Raises MissingError, DeniedError and
    UnavailableError, as all below."""
    with _telling(url):
        system = _open(url)
        system.invalidate_cache()  # one process may look twice
        facts = system.info(url, **_within(system, SECONDS))
        if facts["type"] != "file":
            raise MissingError(f"{mask(url)} is a folder.")
        return {name: str(facts[name]) for name in VERSION if facts.get(name) is not None}


def read(url: str, *, max_bytes: int, seconds: float = SECONDS) -> bytes:
    """The first `max_bytes` of an object, and one more if there are more."""
    with _telling(url):
        system = _open(url)
        data: bytes = system.cat_file(url, start=0, end=max_bytes + 1, **_within(system, seconds))
        return data


def download(url: str, file: Path) -> None:
    """Write an object to a file."""
    with _telling(url):
        _open(url).get_file(url, str(file))


def upload(file: Path, url: str) -> None:
    """Write a file to an object, which is there in whole or not at all. Raises StorageError."""
    try:
        with _telling(url):
            _open(url).put_file(str(file), url)
    except (MissingError, DeniedError) as error:
        raise StorageError(f"{file} cannot be written to {mask(url)}: {error}") from None
