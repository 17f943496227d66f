"""Runs whose table, images, bundle or output lie on an object store, against a server here."""

import csv
import json
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.remote import download
from mmrag_batch.run.files import Paths
from mmrag_batch.settings import DEMO_BUNDLE
from tests.object_store import SECRET, Bucket
from tests.object_store import bucket as bucket  # a fixture
from tests.object_store import s3_server as s3_server  # a fixture
from tests.run.parts import HEADER, Place, call, questions, whole

ROWS = 6
LINES = tuple(questions(ROWS))


class Remote(Place):
    """A place whose table is an object."""

    __slots__ = ()

    @property
    def table(self) -> Path:
        return Path((self.folder / "url.txt").read_text())


def put(bucket: Bucket, lines: tuple[str, ...] = LINES, key: str = "data/in.csv") -> str:
    return bucket.write(key, "\n".join([HEADER, *lines, ""]).encode())


@pytest.fixture
def place(bucket: Bucket, tmp_path: Path) -> Remote:
    (tmp_path / "url.txt").write_text(put(bucket))
    return Remote(tmp_path)


def gets(bucket: Bucket, key: str) -> int:
    return bucket.requests().count(f"GET /{bucket.name}/{key}")


def test_a_table_there_gives_what_it_gives_here(place: Remote, bucket: Bucket) -> None:
    done = place.predict()
    assert done.exit_code == 0, done.stderr
    assert place.output.read_bytes() == whole(LINES)
    assert f"copied to {place.output}.input/in.csv" in done.stderr


def test_a_table_is_copied_once_and_looked_at_at_each_start(place: Remote, bucket: Bucket) -> None:
    assert place.predict().exit_code == 0
    place.asked()
    assert gets(bucket, "data/in.csv") == 1
    before = len(bucket.requests())
    done = place.predict()
    assert "there is nothing to do" in done.stderr
    assert bucket.requests()[before:] == [f"HEAD /{bucket.name}/data/in.csv"]
    put(bucket, (*LINES[:-1], "What costs more?,,"))
    assert place.predict().exit_code == 0
    assert list(place.asked()) == [ROWS - 1]
    assert b"What costs more?" in place.output.read_bytes()


def test_a_copy_that_somebody_changed_is_no_table(place: Remote, bucket: Bucket) -> None:
    assert place.predict().exit_code == 0
    copy = Paths.of(place.output).input / "in.csv"
    copy.write_text(copy.read_text().replace("What costs 1?", "What costs nothing?"))
    assert place.predict().exit_code == 0
    assert place.output.read_bytes() == whole(LINES)
    assert gets(bucket, "data/in.csv") == 2


def test_a_table_that_is_gone_or_closed_changes_nothing(place: Remote, bucket: Bucket) -> None:
    assert place.predict().exit_code == 0
    bucket.files.rm(f"{bucket.url}/data/in.csv")
    before = place.output.read_bytes()
    done = place.predict()
    assert done.exit_code == 66
    assert f"There is no {bucket.url}/data/in.csv." in done.stderr
    assert place.output.read_bytes() == before


def test_what_has_the_name_of_the_copies_is_left_alone(place: Remote) -> None:
    other = place.folder / "other"
    other.mkdir()
    Paths.of(place.output).input.symlink_to(other)
    assert place.predict().exit_code == 73
    assert list(other.iterdir()) == []


def test_commands_name_the_table_where_it_is(place: Remote, bucket: Bucket) -> None:
    put(bucket, tuple(questions(ROWS, broken=[2])))
    done = place.predict()
    assert done.exit_code == 3
    assert f"mmrag-batch predict {bucket.url}/data/in.csv {place.output}" in done.stderr
    assert f"--image-root {bucket.url}/data" in done.stderr
    told = call("explain", place.output, 2, "--json")
    assert f"predict {bucket.url}/data/in.csv" in json.loads(told.stdout)["next"]


def test_shards_of_a_table_there_are_merged_and_uploaded(place: Remote, bucket: Bucket) -> None:
    target = f"{bucket.url}/answers"
    for index in range(2):
        done = place.predict("--shard", f"{index}/2", "--upload", target)
        assert done.exit_code == 0, done.stderr
    assert not [name for name in bucket.names() if name.startswith("answers")]
    done = place.merge()
    assert done.exit_code == 0, done.stderr
    assert bucket.read("answers/out.csv") == whole(LINES)


def png(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (32, 32), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pictures(bucket: Bucket, tmp_path: Path) -> Remote:
    """A table with an image by its path, one by its URL, and one where no image may lie."""
    bucket.write("data/images/red.png", png("red"))
    bucket.write("others/blue.png", png("blue"))
    secret = f"s3://{bucket.name}-secret/x.png"
    rows = ["question_text,question_image", "One?,images/red.png"]
    rows += [f"Two?,{bucket.url}/others/blue.png", f"Three?,{secret}", "Four?,../others/blue.png"]
    url = bucket.write("data/in.csv", "\n".join([*rows, ""]).encode())
    (tmp_path / "url.txt").write_text(url)
    return Remote(tmp_path)


def test_images_are_opened_below_the_places_that_are_named_alone(
    pictures: Remote, bucket: Bucket
) -> None:
    allowed = f"{bucket.url}/data/images,{bucket.url}/others"
    done = pictures.predict("--allow-remote", allowed)
    assert done.exit_code == 3, done.stderr
    with pictures.output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "error"]
    assert all(row["error"].startswith("image_denied") for row in rows[2:])
    assert not bucket.requests(f"/{bucket.name}-secret")
    assert gets(bucket, "data/images/red.png") == 1
    checked = call("validate", pictures.table, "--allow-remote", allowed)
    assert checked.exit_code == 3
    assert f"{bucket.url}/data/in.csv:4: 2: image_denied" in checked.stdout


def test_without_a_place_no_image_is_opened(pictures: Remote, bucket: Bucket) -> None:
    assert pictures.predict().exit_code == 3
    asked = [line for line in bucket.requests(f"/{bucket.name}/") if line.endswith("png")]
    assert all(line.startswith("PUT") for line in asked)
    assert "--allow-remote" in pictures.output.read_text()


def test_an_output_that_is_whole_is_uploaded_and_its_manifest_last(
    place: Remote, bucket: Bucket
) -> None:
    options = ("--upload", f"{bucket.url}/answers/")
    assert place.predict(*options).exit_code == 0
    assert bucket.read("answers/out.csv") == place.output.read_bytes()
    manifest = Paths.of(place.output).manifest
    assert bucket.read("answers/out.csv.manifest.json") == manifest.read_bytes()
    place_asked = f"/{bucket.name}/answers"
    puts = [line for line in bucket.requests(place_asked) if line.startswith("PUT")]
    names = ["out.csv", "out.csv.manifest.json"]
    assert puts == [f"PUT /{bucket.name}/answers/{name}" for name in names]
    assert place.predict(*options).exit_code == 0
    assert [line for line in bucket.requests(place_asked) if line.startswith("PUT")] == puts


def test_an_upload_that_failed_is_made_good_by_the_same_command(
    place: Remote, bucket: Bucket
) -> None:
    options = ("--upload", f"s3://{bucket.name}-later/answers")
    done = place.predict(*options)
    assert done.exit_code == 74, done.stderr
    assert place.output.read_bytes() == whole(LINES)
    assert place.asked()
    bucket.files.mkdir(f"{bucket.name}-later")
    assert place.predict(*options).exit_code == 0
    assert not place.asked()
    assert bucket.files.cat_file(f"{options[1]}/out.csv") == whole(LINES)


def test_an_output_of_somebody_else_there_is_left_alone(place: Remote, bucket: Bucket) -> None:
    bucket.write("answers/out.csv", b"somebody's")
    options = ("--upload", f"{bucket.url}/answers")
    done = place.predict(*options)
    assert done.exit_code == 73
    assert "add `--overwrite`" in done.stderr
    assert not place.asked()  # it is said before a row is asked
    assert bucket.read("answers/out.csv") == b"somebody's"
    assert place.predict(*options, "--overwrite").exit_code == 0
    assert bucket.read("answers/out.csv") == whole(LINES)


def test_what_is_asked_again_to_compare_is_not_uploaded(
    tmp_path: Path, bucket: Bucket, bundle: str
) -> None:
    rows = ["question_text,answer_choices,documents,label"]
    rows += [f"""What is {number}?,"['a', 'b']","['A thing.']",a""" for number in range(4)]
    table = bucket.write("data/in.csv", "\n".join([*rows, ""]).encode())
    output, options = tmp_path / "out.csv", ("--upload", f"{bucket.url}/answers")
    environ = {"MMRAG_ENGINE": "scripted"}
    done = call("predict", table, output, *options, "--bundle", bundle, environ=environ)
    assert done.exit_code == 0, done.stderr
    before = bucket.names()
    done = call("evaluate", output, "--ablate", "evidence")
    assert done.exit_code == 0, done.stderr
    assert "no evidence" in done.stdout
    assert bucket.names() == before
    page = tmp_path / "report.html"
    assert call("report", output, "--out", page).exit_code == 0
    assert f"{bucket.url}/data/in.csv" in page.read_text()


def test_an_output_is_a_file_here(place: Remote, bucket: Bucket) -> None:
    done = call("predict", place.table, f"{bucket.url}/answers/out.csv")
    assert done.exit_code == 73
    assert f"give `out.csv --upload {bucket.url}/answers`" in done.stderr


@pytest.fixture
def bundle(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The demo bundle there, and an empty cache here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in DEMO_BUNDLE.rglob("*"):
        if file.is_file():
            bucket.write(f"bundle/{file.relative_to(DEMO_BUNDLE)}", file.read_bytes())
    bucket.write("bundle/pictures/not-listed.bin", b"0")
    return f"{bucket.url}/bundle"


def test_a_bundle_there_is_copied_once_and_checked(
    place: Remote, bucket: Bucket, bundle: str
) -> None:
    done = place.predict("--bundle", bundle)
    assert done.exit_code == 0, done.stderr
    assert place.output.read_bytes() == whole(LINES)
    before = len(bucket.requests())
    assert place.predict("--bundle", bundle).exit_code == 0
    later = bucket.requests()[before:]
    assert [line for line in later if "/bundle/" in line] == [
        f"GET /{bucket.name}/bundle/bundle.json"
    ]
    [strange] = bucket.requests(f"/{bucket.name}/bundle/pictures")
    assert strange.startswith("PUT")
    put(bucket, tuple(questions(ROWS, broken=[2])))
    assert f"--bundle {bundle}" in place.predict("--bundle", bundle).stderr
    told = json.loads(call("explain", place.output, 1, "--json").stdout)
    assert "What costs 1?" in told["prompt"]["text"]
    bucket.files.rm(bundle, recursive=True)
    told = call("explain", place.output, 1)
    assert told.exit_code == 0
    assert "Name another bundle" in " ".join(told.stdout.split())


def test_a_bundle_that_is_damaged_there_is_not_kept(
    place: Remote, bucket: Bucket, bundle: str, tmp_path: Path
) -> None:
    whole_file = bucket.read("bundle/retriever/tokenizer.json")
    bucket.write("bundle/retriever/tokenizer.json", whole_file[:-1])
    done = place.predict("--bundle", bundle)
    assert done.exit_code == 66
    assert "tokenizer.json differs from bundle.json" in done.stderr
    bucket.write("bundle/retriever/tokenizer.json", whole_file)
    assert place.predict("--bundle", bundle).exit_code == 0
    models = bucket.requests(f"/{bucket.name}/bundle/generator/model.safetensors")
    assert sum(line.startswith("GET") for line in models) == 1  # the rest is not copied again


def test_a_bundle_names_no_file_outside_itself(
    place: Remote, bucket: Bucket, bundle: str, tmp_path: Path
) -> None:
    manifest = json.loads(bucket.read("bundle/bundle.json"))
    manifest["files"]["../../escaped.json"] = "0" * 64
    bucket.write("bundle/bundle.json", json.dumps(manifest).encode())
    done = place.predict("--bundle", bundle)
    assert done.exit_code == 77
    assert "leaves the bundle" in done.stderr
    assert not list(tmp_path.rglob("escaped.json"))


def test_n01_no_key_of_a_store_is_shown(place: Remote, bucket: Bucket) -> None:
    done = place.predict("--upload", f"{bucket.url}/answers")
    kept = (
        b"".join(file.read_bytes() for file in place.folder.rglob("*") if file.is_file())
        + done.output.encode()
    )
    assert SECRET.encode() not in kept


def test_a_table_that_changes_while_it_is_copied_is_not_used(
    place: Remote, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download_late(url: str, file: Path) -> None:
        download(url, file)
        put(bucket, LINES[:-1])

    with monkeypatch.context() as patch:
        patch.setattr("mmrag_batch.run.copies.download", download_late)
        done = place.predict()
    assert done.exit_code == 70
    assert "was changed while it was copied. Run again." in done.stderr
    assert not place.output.exists()
    assert place.predict().exit_code == 0
    assert place.output.read_bytes() == whole(LINES[:-1])


def test_a_killed_copy_is_made_again(place: Remote, bucket: Bucket) -> None:
    folder = Paths.of(place.output).input
    folder.mkdir()
    (folder / "in.csv.out.csv.store.partial").write_bytes(b"half")
    (folder / "in.csv").write_bytes(b"question_text\nanother?\n")
    assert place.predict().exit_code == 0
    assert place.output.read_bytes() == whole(LINES)
    assert {file.name for file in folder.iterdir()} == {"in.csv", "in.csv.source.json"}
    shutil.rmtree(folder)
    assert place.predict().exit_code == 0


def test_documents_and_their_images_there_make_a_corpus_here(
    bucket: Bucket, tmp_path: Path
) -> None:
    """Rows are shown the images from there, if that is allowed."""
    for key in ("data/red.png", "other/red.png"):
        stream = BytesIO()
        Image.new("RGB", (32, 32), "red").save(stream, "png")
        bucket.write(key, stream.getvalue())
    url = bucket.write("data/docs.csv", b"id,text,image\nx,A red thing.,\ny,,red.png\n")
    corpus, allowed = tmp_path / "corpus", ("--allow-remote", f"{bucket.url}/data")
    denied = call("index", url, corpus)
    assert denied.exit_code == 3
    assert f"{bucket.name}/data/docs.csv: line 3" in denied.stdout
    done = call("index", url, corpus, *allowed)
    assert (done.exit_code, "2 documents; 1 added" in done.stdout) == (0, True), done.stdout
    (tmp_path / "in.csv").write_text("question_text\nWhat is red?\n")
    predict = ("predict", tmp_path / "in.csv", tmp_path / "out.csv", "--engine", "scripted")
    assert call(*predict, "--corpus", corpus, *allowed, "--top-k", 2).exit_code == 0
    with (tmp_path / "out.csv").open(newline="") as output:
        (row,) = csv.DictReader(output)
    assert row["status"] == "ok"
    assert {one["id"] for one in json.loads(row["evidence"])} == {"corpus:x", "corpus:y"}
    assert not [line for line in bucket.requests() if "/other/" in line and line.startswith("GET")]
