"""What a text of a table names: an image that stands in it, a URL, the path of a file, a page of
one of these, or nothing of that kind. Told from the text alone; no file is looked at."""

import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from mmrag_batch.errors import RowError
from mmrag_batch.records import Document, Problem, Question

IMAGES = frozenset(
    "jpg jpeg jpe jif jfif pjpeg pjp png apng webp gif bmp dib tif tiff avif avifs heic heics heif"
    " heifs hif jp2 j2k j2c jpc jpf jpx pdf".split()
)
"""Suffixes of what is read here, HEIC and PDF where their libraries are installed."""
_OTHERS = frozenset(
    "svg svgz eps psd xcf ico icns tga jxl jxr exr hdr dds pcx ppm pgm pbm pnm emf wmf dng cr2 cr3"
    " nef arw orf rw2 dcm dicom nii fits djvu doc docx odt rtf ppt pptx odp xls xlsx ods epub"
    " htm html xml json jsonl csv tsv parquet txt md tex zip gz bz2 xz tar tgz 7z rar npy npz pkl"
    " mp4 m4v mov avi mkv webm mpg mpeg mp3 wav flac ogg m4a".split()
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SUFFIX = re.compile(r"(?<=[^\s/\\])\.(\w{2,7})(?:[?#]\S*)?$")
_HOST = re.compile(r"(?:www\.\S+|(?:[a-z0-9-]+\.)+[a-z]{2,}(?::\d+)?/\S*)$", re.IGNORECASE)
_ROOTED = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\\w|~[/\\]|\.{1,2}[/\\]|/[^/]+/)\S")
_NESTED = re.compile(r"[^\s/\\]+(?:[/\\][^\s/\\]+)*[/\\][^\s/\\]*\.[A-Za-z][A-Za-z0-9]{1,6}$")
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
_PAGE = re.compile(r"#(?:[^#]*&)?page=(\d{1,7})(?:&[^#]*)?$")
_LONGEST_PAGE = 64

_DATA = re.compile(r"data:(?:[\w.+-]+/[\w.+*-]+|)(?:;[\w.-]+=[^;,]*)*(?:;base64)?,", re.IGNORECASE)
# How the first bytes of each format look in base64.
_BASE64_HEAD = re.compile(
    r"(?:/9j/|_9j_|iVBORw0KGg|R0lGOD[dl]h|UklGR|Qk[0-3].{5}AAAA|SUkqA|TU0AK|AAAA.GZ0eXB|AAAADGpQ"
    r"|/0//|_0__|JVBERi0)"
)
_PDF_HEAD = "JVBERi0"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{40,}[=\s]*(?:#page=\d+)?")
_WRAPPING = re.compile(r"\s*(?:\[\s*)?(?:b?['\"])?\s*")
_QUOTES = ("'", '"', "`")


def unwrap(text: str) -> str:
    """The text without what tools leave around a path or base64: spaces, quotes, `b'...'` of
    Python's bytes, the brackets of a list of one."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]") and text[1:-1].strip()[:1] in _QUOTES:
        inner = text[1:-1].strip()
        if inner.count(inner[0]) == 2:
            text = inner
    if text[:2] in ("b'", 'b"') and text[-1] == text[1] and len(text) > 3:
        text = text[1:]
    if len(text) > 2 and text[0] == text[-1] and text[0] in _QUOTES:
        text = text[1:-1].strip()
    return text


def is_inline(text: str) -> bool:
    """Whether an image stands in the text itself: a data URI, or base64 without its head."""
    head = _WRAPPING.sub("", text[:256], count=1)
    if head[:5].lower() == "data:":
        return _DATA.match(head) is not None
    return _BASE64_HEAD.match(head) is not None and _BASE64.fullmatch(unwrap(text)) is not None


def split_inline(text: str) -> tuple[str, str]:
    """The head (`data:image/png;base64,`, or nothing) and the body of an inline image."""
    text = unwrap(text)
    match = _DATA.match(text)
    return (match[0], text[match.end() :]) if match else ("", text)


def is_url(source: str) -> bool:
    """Whether a source is somewhere else: a URL that is no `file://`."""
    scheme = _SCHEME.match(unwrap(source))
    return scheme is not None and scheme[0].lower() != "file://"


def split_page(source: str) -> tuple[str, int | None]:
    """What a source names, and which page of it, from 1: `manual.pdf#page=12`, as in RFC 8118.
    None where it names no page."""
    if "page=" not in source[-_LONGEST_PAGE:]:
        return source, None
    bare = unwrap(source)
    match = _PAGE.search(bare, max(0, len(bare) - _LONGEST_PAGE))
    return (bare[: match.start()], int(match[1])) if match else (source, None)


def name_page(name: str, page: int) -> str:
    """The name of a page of what has a name: the source of a file, the id of a document."""
    return f"{name}#page={page}"


def may_be_pdf(source: str) -> bool:
    """Whether a source is not called as another image is; what it holds tells whether it is one."""
    name, _ = split_page(source)
    if is_inline(name):
        return split_inline(name)[1].lstrip().startswith(_PDF_HEAD)
    return _suffix(name) not in IMAGES - {"pdf"}


def names_source(text: str) -> bool:
    """Whether a plain string of a list of documents looks like an image, a path or a URL, and is
    therefore never evidence by its words. Words that only mention one are no such thing."""
    if is_inline(text):
        return True
    bare = unwrap(text) if len(text) <= _LONGEST_PATH else ""
    if len(bare.splitlines()) != 1:
        return False
    if not any(map(str.isspace, bare)):
        if any(pattern.match(bare) for pattern in (_SCHEME, _HOST, _ROOTED, _NESTED)):
            return True
    elif "://" in bare and not _SCHEME.match(bare):
        return False  # a sentence with a URL in it
    name = re.split(r"[/\\]", bare)[-1]
    return _suffix(name) in IMAGES | _OTHERS and len(name.encode(errors="replace")) <= _LONGEST_NAME


def _suffix(name: str) -> str:
    match = _SUFFIX.search(name)
    return match[1].lower() if match else ""


def spellings(source: str) -> Iterator[str]:
    """A path as it stands, then what else it may mean, likeliest first: without quotes and spaces,
    of a `file://` URL, with Windows' separators, percent-encoded, with a URL's query."""
    seen = set()
    bare = unwrap(source)
    if bare[:7].lower() == "file://":
        parts = urlsplit(bare)
        if parts.netloc.lower() in ("", "localhost"):
            yield unquote(parts.path)
        return
    slashed = bare.replace("\\", "/")
    cut = re.split(r"[?#]", slashed, maxsplit=1)[0]
    for spelling in (source, bare, slashed, unquote(slashed), cut, unquote(cut)):
        if spelling and spelling not in seen:
            seen.add(spelling)
            yield spelling


_LOOKS = (
    (r"<img\b|!\[", "like HTML or Markdown; give the address alone"),
    (
        r"<PIL\.|<\w+(\.\w+)* (object|image)\b",
        "like Python's words for an object; save it as a file",
    ),
    (r"b['\"]|bytearray\(", "like Python's bytes; give them in base64"),
    (r"\{", "like an object; give its path alone"),
    (r"\[.*,", "like a list; there is room for one image"),
    (r"[\w+/=-]{200,}$", "like base64, but of nothing that begins as an image does"),
    (r"[A-Za-z]:[\\/]|\\\\\w", "like a path of Windows; write it as from the image root on"),
    (r"\S+(\s+\S+){5}", "like a text"),
)


def describe(source: str) -> str:
    """What a source that names no file looks like; nothing where it looks like a path."""
    looks = (words for pattern, words in _LOOKS if re.match(pattern, source.strip(), re.DOTALL))
    first = next(looks, "")
    return f"; it looks {first}" if first else ""


CORPUS = "corpus:"
"""What the id of a document begins with that is not the row's own."""
CORPUS_FILE = "corpus://"
"""What the source of its image begins with: the path is one below the corpus' image root."""


def image_files(question: Question) -> Iterator[str]:
    """The sources of a question's images, but for those inside the table, which cannot change."""
    sources = (question.image, *(document.image for document in question.documents))
    return (source for source in sources if source and not is_inline(source))


def document_problem(document: Document, error: RowError) -> Problem:
    """Why a document is left out; what could have been meant as a text is told how to be one."""
    hint = "" if document.text else '; a document that is a text: {"text": "..."}'
    if error.code not in ("image_missing", "image_denied", "path_denied", "image_unsupported"):
        hint = ""
    return Problem(error.code, f"document {document.id!r}: {error}{hint}")
