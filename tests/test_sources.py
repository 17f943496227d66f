"""What is words and what names an image, a path or a URL."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mmrag_batch.images.loader import ImageLoader
from mmrag_batch.sources import is_inline, is_url, names_source, spellings, unwrap
from mmrag_batch.table.cells import parse_documents
from mmrag_batch.table.check import check_table
from tests.images.parts import write_pdf


@pytest.mark.parametrize(
    "text",
    """
    photo.jfif|images/iphone.heic|chrome.avif|scan.jp2|a.svg|a.jpg?width=400|my photo.HEIC
    manual.pdf|manual.pdf#page=12|My manual.pdf|notes.docx|folder/file.ext|images\\a.png|x/y/z.q1w
    http://host/x|https://picsum.photos/200|s3://bucket/a|gs://b|file:///data/x|www.example.org
    example.org/photo|https://host/my photo.jpg|C:\\Users\\me\\x|\\\\server\\share|/data/images/7
    ../up/x|./x|~/x|Screenshot 2024-01-02 at 10.11.12.png|'quoted.png'|"a.webp"
    data:application/octet-stream;base64,AAAA|DATA:image/PNG;base64,AAAA
    """.replace("\n", "|").split("|"),
)
def test_field_08_what_looks_like_a_path_or_a_url_is_never_evidence_text(text: str) -> None:
    if text := text.strip():
        (document,) = parse_documents([text])
        assert (document.image, document.text) == (text, None)
        (outright,) = parse_documents([{"text": text}])
        assert (outright.image, outright.text) == (None, text)


@pytest.mark.parametrize(
    "text",
    [
        "See fig. 3.png for details",
        "The manual.pdf says so.",
        "Look at a.png.",
        "Visit https://example.org today",
        "See https://example.org/a.jpg",
        "and/or",
        "24/7",
        "3.5/4.5",
        "10/12/2024",
        "km/h",
        "TCP/IP",
        "Node.js",
        "v1.2",
        "U.S.A.",
        "p. 12",
        ".pdf",
        "Type: .png",
        "www. is short",
        "data: the numbers",
        "The file is\nnamed a.png",
        "/",
        "",
        "n" * 300 + ".png",
    ],
)
def test_field_08_words_are_words(text: str) -> None:
    assert not names_source(text)


@given(st.text())
@example("[" * 9)
@example("b'")
def test_field_08_any_text_is_words_or_a_source(text: str) -> None:
    assert isinstance(names_source(text), bool)
    assert isinstance(is_inline(text) or is_url(text), bool)
    assert all(spelling for spelling in spellings(text))
    assert unwrap(unwrap(text).strip()) is not None


def test_field_08_each_document_that_is_no_image_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "drawing.svg").write_text("<svg/>")
    (tmp_path / "manual.pdf").write_bytes(write_pdf(["One", "Two"]))
    Image.new("RGB", (4, 2)).save(tmp_path / "a.avif", "AVIF")
    Image.new("RGB", (4, 2)).save(tmp_path / "b.jp2", "JPEG2000")
    Image.new("RGB", (4, 2)).save(tmp_path / "c.jfif", "JPEG")
    documents: list[object] = [
        "a.avif",
        "b.jp2",
        "c.jfif",
        "c.jfif?width=400",
        "manual.pdf",
        "manual.pdf#page=2",
        "drawing.svg",
        "absent.pdf",
    ]
    documents += ["https://host/x", "See fig. 3.png for details", {"text": "absent.pdf"}]
    table = tmp_path / "in.jsonl"
    table.write_text(json.dumps({"question_text": "Why?", "documents": documents}) + "\n")
    problems = [item.problem for item in check_table(table, ImageLoader(tmp_path))[1]]
    assert [problem.code for problem in problems] == [
        "image_unsupported",
        "image_missing",
        "image_denied",
    ]
    assert "this is an SVG drawing" in problems[0].message
    assert all('a document that is a text: {"text": "..."}' in one.message for one in problems)


HEADS = {
    "JPEG": b"\xff\xd8\xff\xe0",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "BMP": b"BM\x22\x11\0\0\0\0\0\0",
    "AVIF": b"\0\0\0\x1cftypavif",
    "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "WEBP": b"RIFF\x10\0\0\0WEBP",
    "GIF": b"GIF89a",
    "TIFF": b"II*\0",
    "big-endian TIFF": b"MM\0*",
    "PDF": b"%PDF-1.7\n",
}


@pytest.mark.parametrize("kind", HEADS)
def test_field_21_base64_without_its_head_is_known_by_what_it_begins_with(kind: str) -> None:
    text = base64.b64encode(HEADS[kind] + b"\xfb\xef\xff" * 40).decode()
    assert is_inline(text)
    assert is_inline(f"b'{text}'")
    assert is_inline(text.replace("+", "-").replace("/", "_"))
    assert is_inline("\n".join(text[at : at + 76] for at in range(0, len(text), 76)))
    assert not is_inline(text[:20])
    assert not is_inline("A" + text)
