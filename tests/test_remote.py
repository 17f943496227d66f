from pathlib import Path

import pytest

from mmrag_batch.errors import MissingError, StorageError, UnavailableError
from mmrag_batch.remote import (
    check_driver,
    download,
    find_url,
    find_version,
    is_below,
    read,
    upload,
)
from tests.object_store import Bucket
from tests.object_store import bucket as bucket  # a fixture
from tests.object_store import s3_server as s3_server  # a fixture


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("s3://bucket/in.csv", "s3://bucket/in.csv"),
        (Path("s3://bucket/in.csv"), "s3://bucket/in.csv"),
        ("S3://bucket/A B.csv", "s3://bucket/A B.csv"),
        (Path("gs://bucket"), "gs://bucket"),
        (Path("hf://datasets/owner/name/in.csv"), "hf://datasets/owner/name/in.csv"),
        ("hf:owner/name", None),
        ("file:///etc/passwd", None),
        ("https://example.org/s3://b", None),
        ("memory://x", None),
        ("out.csv", None),
        ("a/s3:/b", None),
    ],
)
def test_a_url_is_known_however_it_is_given(name: str | Path, url: str | None) -> None:
    assert find_url(name) == url


@pytest.mark.parametrize(
    ("url", "place", "expected"),
    [
        ("s3://b/c/x.png", "s3://b/c", True),
        ("s3://b/c/x.png", "s3://b/c/", True),
        ("s3://b/c/x.png", "s3://b", True),
        ("s3://b/c/x.png", "s3://b/c/x.png", True),
        ("s3://b/cat/x.png", "s3://b/c", False),
        ("s3://bc/x.png", "s3://b", False),
        ("gs://b/x.png", "s3://b", False),
        ("s3://b/c/../secret.png", "s3://b/c", False),
        ("s3://b/c/./x.png", "s3://b/c", False),
        ("s3://b", "s3://b/c", False),
    ],
)
def test_places_are_compared_by_whole_names(url: str, place: str, expected: bool) -> None:
    assert is_below(url, place) is expected


def test_a_driver_that_is_missing_is_named_with_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gcsfs" else name)
    with pytest.raises(UnavailableError, match="Run `pip install gcsfs`"):
        check_driver("gs://bucket/in.csv")


def test_an_object_comes_and_goes_as_it_is(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.write("a/b.bin", b"0123456789")
    assert find_version(url)["size"] == "10"
    assert read(url, max_bytes=10) == b"0123456789"
    assert len(read(url, max_bytes=4)) == 5  # one more says that there are more
    file = tmp_path / "b.bin"
    download(url, file)
    assert file.read_bytes() == b"0123456789"
    before = find_version(url)
    file.write_bytes(b"9876543210")
    upload(file, url)
    assert bucket.read("a/b.bin") == b"9876543210"
    assert find_version(url) != before


def test_what_is_not_there_is_missing(bucket: Bucket, tmp_path: Path) -> None:
    bucket.write("a/b.bin", b"0")
    nowhere = f"s3://{bucket.name}-gone/x"
    for url in (f"{bucket.url}/none", f"{bucket.url}/a", nowhere):
        with pytest.raises(MissingError):
            find_version(url)
    with pytest.raises(MissingError):
        read(f"{bucket.url}/none", max_bytes=9)
    file = tmp_path / "x"
    file.write_bytes(b"0")
    with pytest.raises(StorageError, match="cannot be written to"):
        upload(file, nowhere)
