"""Images from object stores, for a run that allows it: what lies below named places and nothing
else, so many bytes and seconds at most."""

from collections.abc import Collection
from urllib.parse import unquote

from mmrag_batch.errors import DeniedError, MissingError, MmragError, RowError
from mmrag_batch.remote import check_driver, find_url, is_below, read

SECONDS = 30.0
"""Most time for one image."""


class ObjectFetcher:
    """Fetches the objects that `s3://`, `gs://` and `hf://` URLs name, below one of `places`.

    Whatever a URL says, nothing else is asked for: what is not below a place, by whole names, is
    refused before a driver sees it. Raises RowError: `image_denied`, `image_missing`,
    `image_too_large`; UnavailableError, at once, for a driver that is not installed.
    """

    def __init__(
        self, places: Collection[str], *, max_bytes: int, seconds: float = SECONDS
    ) -> None:
        self._places = tuple(filter(None, map(find_url, places)))
        self._max_bytes = max_bytes
        self._seconds = seconds
        for place in self._places:
            check_driver(place)

    def __call__(self, url: str) -> bytes:
        """The bytes at `url`."""
        named = find_url(url) or url
        # A driver or a server may read `%2e%2e` or a backslash as it likes.
        plain = unquote(named).replace("\\", "/")
        if not any(is_below(named, place) and is_below(plain, place) for place in self._places):
            allowed = ", ".join(self._places) or "none"
            raise RowError("image_denied", f"its place is not allowed; allowed: {allowed}")
        try:
            data = read(named, max_bytes=self._max_bytes, seconds=self._seconds)
        except DeniedError as error:
            raise RowError("image_denied", str(error)) from None
        except MissingError as error:
            raise RowError("image_missing", str(error)) from None
        except MmragError as error:
            raise RowError("image_missing", f"cannot be fetched: {error}") from None
        if len(data) > self._max_bytes:
            raise RowError("image_too_large", f"over {self._max_bytes >> 20} MiB")
        return data
