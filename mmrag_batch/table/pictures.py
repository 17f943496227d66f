"""Pictures that a table holds itself: bytes, or `{"bytes", "path"}` as Hugging Face's datasets."""

from base64 import b64encode

KEYS = frozenset({"bytes", "path"})


def is_picture(value: object) -> bool:
    """Whether an object is a picture as datasets keep them."""
    return isinstance(value, dict) and value.keys() == KEYS


def image_source(value: object) -> object:
    """What names an image: the bytes that are there as a `data:` URI, else their path; any other
    value as it is."""
    if isinstance(value, dict) and is_picture(value):
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if isinstance(value, bytes):
        # What the bytes are is told by themselves.
        return f"data:image/unknown;base64,{b64encode(value).decode()}" if value else None
    return value
