"""Opening images: inside the root, regular files only, never the network."""

import base64
import hashlib
import os
import threading
import unicodedata
import warnings
import weakref
from pathlib import Path

import pytest
from PIL import Image

from mmrag_batch.errors import RowError
from mmrag_batch.images import files
from mmrag_batch.images import loader as loader_module
from mmrag_batch.images.guard import decode_within_limits
from mmrag_batch.images.loader import ImageLoader


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root with one image, beside a secret that nothing may reach."""
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    Image.new("RGB", (4, 2), "red").save(root / "a.png")
    Image.new("RGB", (4, 2), "blue").save(root / "folder" / "b.png")
    Image.new("RGB", (4, 2), "black").save(tmp_path / "secret.png")
    return root


def code_of(root: Path, source: str) -> str:
    loader = ImageLoader(root)
    with pytest.raises(RowError) as loaded:
        loader.load(source)
    with pytest.raises(RowError) as digested:
        loader.digest(source)
    assert str(loaded.value) == str(digested.value)
    assert loaded.value.code == digested.value.code
    return loaded.value.code


def test_an_image_is_loaded_and_digested(root: Path) -> None:
    loader = ImageLoader(root)
    assert loader.load("a.png").getpixel((0, 0)) == (255, 0, 0)
    assert loader.digest("a.png") == hashlib.sha256((root / "a.png").read_bytes()).hexdigest()


@pytest.mark.parametrize("source", ["folder/b.png", "./folder/../folder/b.png"])
def test_a_path_within_the_root_is_opened(root: Path, source: str) -> None:
    assert ImageLoader(root).load(source).getpixel((0, 0)) == (0, 0, 255)


def test_an_absolute_path_within_the_root_is_opened(root: Path) -> None:
    assert ImageLoader(root).load(str(root / "a.png")).size == (4, 2)


def test_a_link_within_the_root_is_followed(root: Path) -> None:
    (root / "link.png").symlink_to("folder/b.png")
    (root / "way").symlink_to(root / "folder")
    loader = ImageLoader(root)
    assert loader.load("link.png").getpixel((0, 0)) == (0, 0, 255)
    assert loader.load("way/b.png").getpixel((0, 0)) == (0, 0, 255)


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(root)
    assert ImageLoader(tmp_path / "other").load("a.png").size == (4, 2)


@pytest.mark.parametrize(
    "name", ["with space.png", "new\nline.png", unicodedata.normalize("NFD", "é.png"), "%41.png"]
)
def test_g13_odd_names_are_opened_as_they_are(root: Path, name: str) -> None:
    (root / "a.png").rename(root / name)
    assert ImageLoader(root).load(name).size == (4, 2)


@pytest.mark.parametrize("source", ["c.png", "folder/c.png", "a.png/c.png", "n" * 300 + ".png"])
def test_g01_a_file_that_is_not_there_is_missing(root: Path, source: str) -> None:
    assert code_of(root, source) == "image_missing"


@pytest.mark.parametrize("source", ["a\0.png", "\ud800.png"])
def test_g13_a_name_no_file_can_have_is_missing(root: Path, source: str) -> None:
    assert code_of(root, source) == "image_missing"


def test_a_loop_of_links_is_missing(root: Path) -> None:
    (root / "loop.png").symlink_to("loop.png")
    assert code_of(root, "loop.png") in {"image_missing", "path_denied"}


@pytest.mark.parametrize(
    "source",
    [
        "../secret.png",
        "../secret.png#page=1",
        "folder/../../secret.png",
        "../../etc/passwd",
        "../absent.png",
        "/etc/passwd",
        "/dev/zero",
        "~/secret.png",
        "file:///etc/passwd",
        "FILE://a.png",
    ],
)
def test_g09_nothing_outside_the_root_is_opened(root: Path, source: str) -> None:
    assert code_of(root, source) == "path_denied"


def test_g10_a_link_out_of_the_root_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "way").symlink_to(tmp_path)
    assert code_of(root, "out.png") == "path_denied"
    assert code_of(root, "way/secret.png") == "path_denied"


@pytest.mark.parametrize("swapped", ["folder", "folder/b.png"])
def test_g10_a_link_swapped_in_after_the_check_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    (tmp_path / "b.png").write_bytes((tmp_path / "secret.png").read_bytes())
    target = tmp_path if swapped == "folder" else tmp_path / "b.png"
    resolve = Path.resolve

    def resolve_then_swap(path: Path, strict: bool = False) -> Path:
        resolved = resolve(path, strict)
        if path.name == "b.png" and not (root / swapped).is_symlink():
            (root / swapped).rename(root / "moved")
            (root / swapped).symlink_to(target)
        return resolved

    loader = ImageLoader(root)
    monkeypatch.setattr(Path, "resolve", resolve_then_swap)
    with pytest.raises(RowError) as caught:
        loader.load("folder/b.png")
    assert (root / swapped).is_symlink()
    assert caught.value.code in {"path_denied", "image_missing"}


def test_g11_a_fifo_is_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    assert code_of(root, "pipe.png") == "path_denied"


@pytest.mark.parametrize("source", ["folder", "", "."])
def test_g11_a_folder_is_refused(root: Path, source: str) -> None:
    assert code_of(root, source) == "path_denied"


def test_g11_a_file_that_may_not_be_read_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_read_regular", refuse)  # a superuser may read anything
    assert code_of(root, "a.png") == "path_denied"


def test_g03_a_file_over_the_size_limit_is_refused_unread(root: Path) -> None:
    with (root / "huge.png").open("wb") as stream:
        stream.truncate(files.MAX_BYTES + 1)
    assert code_of(root, "huge.png") == "image_too_large"


@pytest.mark.parametrize(
    "source", ["http://169.254.169.254/a.png", "https://example.org/a.png", "s3://bucket/a.png"]
)
def test_g12_the_network_is_never_asked(root: Path, source: str) -> None:
    assert code_of(root, source) == "image_denied"


def test_g12_a_data_uri_is_loaded(root: Path) -> None:
    data = (root / "a.png").read_bytes()
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    loader = ImageLoader(root)
    assert loader.load(source).getpixel((0, 0)) == (255, 0, 0)
    assert loader.digest(source) == loader.digest("a.png")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("data:image/png;base64,AA*A", "image_corrupt"),
        ("data:image/png;base64,AAAAA", "image_corrupt"),
        ("data:image/png;base64,é", "image_corrupt"),
        ("data:image/png,AAAA", "image_denied"),
        ("data:text/html;base64,AAAA", "image_denied"),
    ],
)
def test_g12_a_broken_data_uri_is_refused(root: Path, source: str, code: str) -> None:
    assert code_of(root, source) == code


def test_a_data_uri_over_the_size_limit_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 30)
    assert code_of(root, "data:image/png;base64," + "A" * 48) == "image_too_large"


def test_a_data_uri_that_is_no_image_is_corrupt(root: Path) -> None:
    with pytest.raises(RowError) as caught:
        ImageLoader(root).load("data:image/png;base64," + "A" * 4000)
    assert caught.value.code == "image_corrupt"
    assert len(str(caught.value)) < 250


def test_g14_an_image_deleted_between_digest_and_load_is_still_there(root: Path) -> None:
    loader = ImageLoader(root)
    loader.digest("a.png")
    (root / "a.png").unlink()
    assert loader.load("a.png").size == (4, 2)


def test_the_files_kept_are_bounded_in_number_and_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (root / "a.png").stat().st_size
    monkeypatch.setattr(loader_module, "FILE_BYTES", 3 * (size + len("0.png")))
    for number in range(5):
        (root / f"{number}.png").write_bytes((root / "a.png").read_bytes())
    loader = ImageLoader(root)
    for number in range(5):
        loader.digest(f"{number}.png")
        (root / f"{number}.png").unlink()
    assert code_after_deletion(loader, 1) == "image_missing"
    assert code_after_deletion(loader, 2) == "kept"
    monkeypatch.setattr(loader_module, "FILES", 1)
    loader = ImageLoader(root)
    loader.digest("a.png")
    (root / "a.png").rename(root / "moved.png")
    loader.digest("moved.png")
    with pytest.raises(RowError, match="no such file"):
        loader.digest("a.png")


def code_after_deletion(loader: ImageLoader, number: int) -> str:
    try:
        loader.digest(f"{number}.png")
    except RowError as error:
        return error.code
    return "kept"


def test_threads_share_a_loader(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "FILES", 2)
    names = ["a.png", "folder/b.png"]
    for number in range(4):
        names.append(f"{number}.png")
        Image.new("RGB", (4, 2), (number, number, number)).save(root / names[-1])
    expected = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
    loader = ImageLoader(root)
    found: list[bool] = []

    def work() -> None:
        found.extend(loader.digest(name) == expected[name] for name in names * 30)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * (4 * 30 * len(names))


def test_odd_metadata_does_not_warn(root: Path) -> None:
    ifd = b"II*\0\x08\0\0\0" + b"\1\0" + b"\x0e\1\2\0\xff\xff\0\0\xff\xff\xff\x7f" + bytes(4)
    Image.new("RGB", (4, 2)).save(root / "a.jpg", exif=b"Exif\0\0" + ifd)
    with pytest.warns(UserWarning, match="larger than file"):
        Image.open(root / "a.jpg").close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ImageLoader(root).load("a.jpg").size == (4, 2)
    assert caught == []


@pytest.mark.parametrize(
    "shape",
    [
        "{all}",
        "data:image/png;base64,{all}",
        "DATA:image/PNG;base64,{all}",
        "data:;base64,{all}",
        "data:image/png;charset=utf-8;base64,{all}",
        "data:application/octet-stream;base64,{all}",
        "data:image/png;base64, {first}\n{second}\n",
        "{first}\r\n{second}",
        "{bare}",
        "{safe}",
        "b'{all}'",
        '"{all}"',
        '["{all}"]',
    ],
)
def test_field_21_base64_is_read_as_tools_write_it(root: Path, shape: str) -> None:
    text = base64.b64encode((root / "a.png").read_bytes()).decode()
    source = shape.format(
        all=text,
        first=text[:60],
        second=text[60:],
        bare=text.rstrip("="),
        safe=text.replace("+", "-").replace("/", "_"),
    )
    loader = ImageLoader(root)
    assert loader.load(source).getpixel((0, 0)) == (255, 0, 0)
    assert loader.digest(source) == loader.digest("a.png")


@pytest.mark.parametrize(
    "source",
    [
        "FOLDER/B.PNG",
        "folder\\b.png",
        ".\\folder\\b.png",
        '"folder/b.png"',
        "'folder/b.png'",
        " folder/b.png\n",
        '["folder/b.png"]',
        "folder/b.png?width=400",
        "folder%2Fb.png",
        "file://{root}/folder/b.png",
        "file://localhost{root}/folder/b.png",
        "File://{root}/fold%65r/b.png",
    ],
)
def test_field_21_a_path_is_read_as_people_write_it(root: Path, source: str) -> None:
    assert ImageLoader(root).load(source.format(root=root)).getpixel((0, 0)) == (0, 0, 255)


def test_field_21_the_name_as_it_stands_comes_first(root: Path) -> None:
    for number, name in enumerate([" a.png", "'a.png'", "A.png", "a.png?x", "folder\\b.png"]):
        Image.new("RGB", (4, 2), (number, number, number)).save(root / "new.png")
        (root / "new.png").rename(root / name)
        assert ImageLoader(root).load(name).getpixel((0, 0)) == (number,) * 3


def test_field_21_names_that_differ_in_case_alone_are_told(root: Path) -> None:
    (root / "B.png").write_bytes(b"")
    (root / "b.PNG").write_bytes(b"")
    with pytest.raises(RowError, match=r"no such file, but 'B\.png' and 'b\.PNG'|'b\.PNG' and"):
        ImageLoader(root).load("b.png")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("C:\\images\\a.png", "a path of Windows; write it as from the image root on"),
        ('<img src="a.png">', "HTML or Markdown"),
        ("![a](a.png)", "HTML or Markdown"),
        ("<PIL.PngImagePlugin.PngImageFile image mode=RGB size=4x2 at 0x7F>", "Python's words"),
        (r"b'\x89PNG\r\n'", "Python's bytes; give them in base64"),
        ('{"path": "a.png"}', "an object; give its path alone"),
        ('["a.png", "b.png"]', "a list; there is room for one image"),
        ("QUJD" * 60, "base64, but of nothing that begins as an image does"),
        ("A crane that stands in a yard", "a text"),
    ],
)
def test_field_21_what_names_no_file_is_told_by_its_looks(
    root: Path, source: str, words: str
) -> None:
    with pytest.raises(RowError, match=f"it looks like {words}") as caught:
        ImageLoader(root).load(source)
    assert caught.value.code in {"image_missing", "path_denied"}


@pytest.mark.parametrize(
    "source", ["OUT.png", "WAY/secret.png", '"../secret.png"', "..\\secret.png", "file://{}/x"]
)
def test_field_21_no_other_spelling_leads_out_of_the_root(
    root: Path, tmp_path: Path, source: str
) -> None:
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "way").symlink_to(tmp_path)
    assert code_of(root, source.format(tmp_path)) == "path_denied"


def test_k01_an_image_is_decoded_once_under_whatever_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(data: bytes) -> Image.Image:
        decoded.append(len(data))
        return decode_within_limits(data)

    monkeypatch.setattr(loader_module, "decode_within_limits", decode)
    (root / "same.png").write_bytes((root / "a.png").read_bytes())
    (root / "text.png").write_bytes(b"nothing")
    loader = ImageLoader(root)
    images = {id(loader.load(name)) for name in ("a.png", "same.png", "./a.png") * 2}
    assert len(images) == len(decoded) == 1
    for name in ("text.png", "./text.png"):
        with pytest.raises(RowError, match=f"'{name}': not an image"):
            loader.load(name)
    assert len(decoded) == 2


def test_k01_decoded_images_are_kept_within_their_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "PIXEL_BYTES", 2 * 4 * 4 * 2)
    Image.new("RGB", (4, 2), "white").save(root / "c.png")
    loader = ImageLoader(root)
    names = ["a.png", "folder/b.png", "c.png"]
    kept = [weakref.ref(loader.load(name)) for name in names]
    assert [ref() is not None for ref in kept] == [False, True, True]
