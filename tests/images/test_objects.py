"""Images on an object store: below the places that are named, and nothing else is asked for."""

import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import RowError, UnavailableError
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.objects import ObjectFetcher
from tests.object_store import SECRET, Bucket
from tests.object_store import bucket as bucket  # a fixture
from tests.object_store import s3_server as s3_server  # a fixture


def png(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (32, 32), colour).save(stream, "PNG")
    return stream.getvalue()


def code_of(images: ImageLoader | ObjectFetcher, source: str) -> str:
    with pytest.raises(RowError) as caught:
        images.load(source) if isinstance(images, ImageLoader) else images(source)
    return caught.value.code


def test_an_image_below_a_place_is_an_image_like_any(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.write("pictures/red.png", png("red"))
    images = ImageLoader(tmp_path, places=[f"{bucket.url}/pictures"])
    (tmp_path / "same.png").write_bytes(png("red"))
    assert images.load(url).getpixel((0, 0)) == (255, 0, 0)
    assert images.digest(url) == images.digest("same.png")
    assert images.digest(f" '{url}' ") == images.digest(url)


def test_paths_below_a_root_on_a_store_are_objects_there(bucket: Bucket) -> None:
    bucket.write("data/images/red.png", png("red"))
    root = Path(f"{bucket.url}/data")
    images = ImageLoader(root, places=[f"{bucket.url}/data/images"])
    assert images.load("images/red.png").size == (32, 32)
    assert code_of(images, "images/blue.png") == "image_missing"
    assert code_of(images, "red.png") == "image_denied"
    assert code_of(ImageLoader(root), "images/red.png") == "image_denied"


@pytest.mark.parametrize(
    "name",
    [
        "{0}-secret/pictures/red.png",
        "{0}/secret.png",
        "{0}/pictures-secret/red.png",
        "{0}/pictures/../secret.png",
        "{0}/pictures/%2e%2e/secret.png",
        "{0}/pictures/..%2fsecret.png",
        "{0}/pictures/..\\secret.png",
        "{0}/pictures/./../secret.png",
        "{0}/other::{0}/pictures/secret.png",
        "gs://{1}/pictures/secret.png",
        "hf://datasets/secret/pictures/red.png",
        "S3://{1}/secret.png",
    ],
)
def test_nothing_outside_the_places_is_asked_for(bucket: Bucket, name: str) -> None:
    bucket.write("secret.png", png("red"))
    bucket.write("pictures-secret/red.png", png("red"))
    fetch = ObjectFetcher([f"{bucket.url}/pictures"], max_bytes=10_000)
    before = bucket.requests("/")
    assert code_of(fetch, name.format(bucket.url, bucket.name)) == "image_denied"
    assert bucket.requests("/") == before


@pytest.mark.parametrize("source", ["file://{0}", "memory://x", "local://{0}", "s3a://b/x", "{0}"])
def test_no_other_file_system_is_opened(bucket: Bucket, tmp_path: Path, source: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("red"))
    fetch = ObjectFetcher([bucket.url], max_bytes=10_000)
    assert code_of(fetch, source.format(secret)) == "image_denied"
    images = ImageLoader(Path(bucket.url), places=[bucket.url])
    assert code_of(images, source.format(secret)) in ("image_denied", "image_missing")


def test_an_image_of_too_many_bytes_is_not_read_to_its_end(bucket: Bucket) -> None:
    url = bucket.write("large.png", bytes(5000))
    assert code_of(ObjectFetcher([bucket.url], max_bytes=4999), url) == "image_too_large"
    assert ObjectFetcher([bucket.url], max_bytes=5000)(url) == bytes(5000)


def test_what_is_no_image_there_is_told_as_anywhere(bucket: Bucket, tmp_path: Path) -> None:
    images = ImageLoader(tmp_path, places=[bucket.url])
    assert code_of(images, bucket.write("empty.png", b"")).startswith("image_")
    assert code_of(images, bucket.write("page.png", b"<html>")) == "image_corrupt"
    assert code_of(images, f"{bucket.url}/gone.png") == "image_missing"
    assert code_of(images, f"s3://{bucket.name}-gone/x.png") == "image_denied"


@pytest.fixture
def silent_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A store that takes connections and never says a word."""
    import s3fs

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        yield bucket
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_never_answers_costs_its_row_alone(silent_store: Bucket) -> None:
    fetch = ObjectFetcher([silent_store.url], max_bytes=100, seconds=0.5)
    with pytest.raises(RowError, match="cannot be fetched") as caught:
        fetch(f"{silent_store.url}/x.png")
    assert caught.value.code == "image_missing"
    assert SECRET not in str(caught.value)


def test_a_driver_that_is_missing_is_said_before_a_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gcsfs" else name)
    with pytest.raises(UnavailableError, match="pip install gcsfs"):
        ImageLoader(tmp_path, places=["gs://bucket"])
