"""Pages of PDFs: which pictures and texts they become, and what a hostile file costs."""

import base64
import importlib.util
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from mmrag_batch import confined
from mmrag_batch.errors import RowError
from mmrag_batch.images import loader
from mmrag_batch.images.files import read_file
from mmrag_batch.images.guard import Helper
from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.images.pages import with_pages
from mmrag_batch.images.pdf import MAX_PAGES, MAX_TEXT
from mmrag_batch.images.pixels import KEPT_PIXELS
from mmrag_batch.records import Document, Question
from mmrag_batch.sources import is_inline, may_be_pdf, split_page
from mmrag_batch.table.pictures import image_source
from tests.images.parts import write_pdf

MANUAL = write_pdf(["The crane lifts 10 t.", "Turn the key.\nThen wait.", ""])
DEEP = {f"X{n}": f"/X{n + 1} Do ".encode() * 12 for n in range(12)} | {"X12": b"0 0 1 1 re f"}
"""Forms that show each other 12^12 times."""
LOCK = b"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O(%s)/U(%s)>>/ID[(i)(i)]" % (b"o" * 32, b"u" * 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "manual.pdf").write_bytes(MANUAL)
    return tmp_path


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    helper = Helper(seconds=1)
    yield helper
    helper.close()


def error_of(folder: Path, source: str, data: bytes | None = None) -> RowError:
    if data is not None:
        (folder / source.partition("#")[0]).write_bytes(data)
    with pytest.raises(RowError) as caught:
        ImageLoader(folder).load(source)
    return caught.value


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ("manual.pdf#page=12", ("manual.pdf", 12)),
        ('"a b/manual.pdf#page=2"', ("a b/manual.pdf", 2)),
        ("https://host/m.pdf?v=1#zoom=50&page=3&view=Fit", ("https://host/m.pdf?v=1", 3)),
        ("manual.pdf#page=", ("manual.pdf#page=", None)),
        ("manual.pdf#pages=3", ("manual.pdf#pages=3", None)),
        ("manual.pdf", ("manual.pdf", None)),
        ("page=3", ("page=3", None)),
    ],
)
def test_a_source_may_name_a_page(source: str, page: tuple[str, int | None]) -> None:
    assert split_page(source) == page


def test_a_page_is_a_picture_and_a_text(root: Path) -> None:
    images = ImageLoader(root)
    pages = images.pages("manual.pdf")
    assert pages == (
        ("manual.pdf#page=1", "The crane lifts 10 t."),
        ("manual.pdf#page=2", "Turn the key.\nThen wait."),
        ("manual.pdf#page=3", None),
    )
    assert images.pages("manual.pdf#page=2") == pages[1:2]
    picture = images.load("manual.pdf#page=2")
    assert picture.mode == "RGB"
    assert abs(picture.width * picture.height - KEPT_PIXELS) < 5_000
    assert picture.getpixel((9, 9)) == (255, 255, 255)
    assert picture.getpixel((9, picture.height - 9)) == (255, 0, 0)
    assert (picture.convert("L").histogram()[0]) > 1_000  # its letters


def test_pages_have_digests_of_their_own_and_their_file_is_read_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def read(root: Path, source: str) -> bytes:
        reads.append(source)
        return read_file(root, source)

    monkeypatch.setattr(loader, "read_file", read)
    images = ImageLoader(root)
    sources = ["manual.pdf", *(page.source for page in images.pages("manual.pdf"))]
    digests = [images.digest(source) for source in sources]
    assert len(set(digests)) == 4
    images.load(sources[1])
    assert reads == ["manual.pdf"]
    (root / "manual.pdf").write_bytes(MANUAL + b"\n")
    assert not set(digests) & {ImageLoader(root).digest(source) for source in sources}


def test_the_same_file_is_sent_to_the_helper_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = confined._send

    def note(stream: IO[bytes], head: dict[str, object], body: bytes) -> None:
        sent.append(len(body))
        send(stream, head, body)

    monkeypatch.setattr(confined, "_send", note)
    helper = Helper()
    try:
        assert len(helper.read_texts(MANUAL, None)) == 3
        assert helper.decode(MANUAL, "PDF", 3).size == helper.decode(MANUAL, "PDF", 1).size
        assert helper.read_texts(write_pdf(["One"]), None) == ["One"]
    finally:
        helper.close()
    assert sent[:3] == [len(MANUAL), 0, 0]
    assert sent[3] > 0


@pytest.mark.parametrize("source", ["manual.pdf#page=0", "manual.pdf#page=4"])
def test_a_page_that_is_not_there_is_missing(root: Path, source: str) -> None:
    assert error_of(root, source).code == "page_missing"
    assert "it has pages 1 to 3" in str(error_of(root, source))


def test_nothing_is_silently_the_first_page(root: Path) -> None:
    error = error_of(root, "manual.pdf")
    assert error.code == "page_missing"
    assert "a PDF of 3 pages; say which of them: `manual.pdf#page=1`" in str(error)
    Image.new("RGB", (4, 2)).save(root / "scan.tif")
    assert "a TIFF image, which has no pages to name" in str(error_of(root, "scan.tif#page=2"))


def test_a_file_of_one_page_is_a_picture(root: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (200, 100), "blue").save(buffer, "PDF")
    (root / "one.pdf").write_bytes(buffer.getvalue())
    images = ImageLoader(root)
    assert images.load("one.pdf") is images.load("one.pdf#page=1")
    assert images.load("one.pdf").getpixel((500, 300)) in {(0, 0, 254), (0, 0, 255)}
    assert images.pages("one.pdf") == (("one.pdf#page=1", None),)


def test_a_pdf_may_stand_in_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageLoader(root)
    bare = base64.b64encode(MANUAL).decode()
    uri = image_source({"bytes": MANUAL, "path": None})
    assert isinstance(uri, str)
    for source in (bare, uri, f"data:application/pdf;base64,{bare}"):
        assert is_inline(source)
        assert is_inline(f"{source}#page=2")
        assert may_be_pdf(source)
        pages = images.pages(source)
        assert [page.text for page in pages] == [page.text for page in images.pages("manual.pdf")]
        assert images.digest(pages[1].source) == images.digest("manual.pdf#page=2")
        assert images.load(pages[1].source) is images.load("manual.pdf#page=2")
    monkeypatch.setattr(loader, "INLINE_BYTES", 2 * len(bare))
    with pytest.raises(RowError, match="a PDF of 3 pages in the table itself; save it as a file"):
        ImageLoader(root).pages(bare)


def test_texts_are_what_a_table_may_hold(tmp_path: Path) -> None:
    odd, long = "a\\001b \\000 c   d\\n  \n\n\n  exam-\nple", "\n".join(["word " * 100] * 150)
    (tmp_path / "a.pdf").write_bytes(write_pdf([odd, long], size=(9_000, 9_000)))
    read, cut = (page.text for page in ImageLoader(tmp_path).pages("a.pdf"))
    assert read == "ab c d\nexample"
    assert cut is not None
    assert MAX_TEXT - 500 < len(cut) <= MAX_TEXT < len(long)


def test_g08_a_pdf_needs_its_library(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "mmrag_batch.images.formats.find_spec",
        lambda name: None if name == "pypdfium2" else find(name),
    )
    for source in ("manual.pdf", "manual.pdf#page=2"):
        error = error_of(root, source)
        assert error.code == "image_unsupported"
        assert "this is a PDF; run `pip install pypdfium2`" in str(error)
    question = Question("Why?", None, (), (Document("0", None, "manual.pdf"),))
    assert with_pages(question, ImageLoader(root)) is question


def test_k02_a_file_of_many_pages_is_read_where_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(write_pdf(["Page"] * (MAX_PAGES + 1)))
    images = ImageLoader(tmp_path)
    with pytest.raises(RowError, match="501 pages, over 500; name those that matter") as caught:
        images.pages("a.pdf")
    assert caught.value.code == "image_too_large"
    assert images.pages("a.pdf#page=501")[0].text == "Page"


@pytest.mark.parametrize("size", [(10**9, 10**9), (14_400, 200), (1, 1)])
def test_k02_a_page_of_any_size_has_so_many_pixels(
    tmp_path: Path, size: tuple[float, float]
) -> None:
    (tmp_path / "a.pdf").write_bytes(write_pdf(["Page"], size=size))
    picture = ImageLoader(tmp_path).load("a.pdf")
    assert picture.width * picture.height < 1.01 * KEPT_PIXELS


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (write_pdf(["Page"], size=(10_000, 20)), "image_bad_aspect"),
        (write_pdf(["Page"], trailer=LOCK), "image_unsupported"),
        (write_pdf([]), "image_corrupt"),
        (MANUAL[:200], "image_corrupt"),
        (b"%PDF-1.7\n" + b"\x07" * 500, "image_corrupt"),
    ],
)
def test_k02_a_file_that_cannot_be_shown_says_why(tmp_path: Path, data: bytes, code: str) -> None:
    for source in ("a.pdf", "a.pdf#page=1"):
        error = error_of(tmp_path, source, data)
        assert error.code == code
        assert ("needs a password" in str(error)) == (code == "image_unsupported")


def test_k02_a_page_without_an_end_costs_itself_alone(helper: Helper) -> None:
    hostile = write_pdf(["/X0 Do"], forms=DEEP)
    with pytest.raises(RowError) as caught:
        helper.decode(hostile, "PDF", 1)
    assert caught.value.code in {"image_too_costly", "image_corrupt"}
    assert helper.decode(MANUAL, "PDF", 1).getpixel((9, 9)) == (255, 255, 255)
    assert helper.read_texts(MANUAL, 1) == ["The crane lifts 10 t."]


def test_k02_forms_that_show_themselves_end(helper: Helper) -> None:
    circle = write_pdf(["/X0 Do"], forms={"X0": b"/X0 Do", "X1": b""})
    assert helper.decode(circle, "PDF", 1).getpixel((9, 9)) == (255, 255, 255)
