"""What the bytes of an image are, told from their beginning: the formats that are read, and those
that people take for images."""

import re
from importlib.util import find_spec

from PIL import features

from mmrag_batch.errors import RowError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PDF")
"""The formats that are read, by Pillow's names. HEIF (HEIC) needs pillow-heif, PDF pypdfium2."""

_PDF = rb"(?:\xef\xbb\xbf)?\s*%PDF-"
_READ = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"RIFF.{4}WEBP"),
    ("GIF", rb"GIF8[79]a"),
    ("BMP", rb"BM"),
    ("TIFF", rb"II\*\0|MM\0\*|II\x2b\0|MM\0\x2b"),
    ("AVIF", rb".{4}ftypavi[fs]|.{4}ftyp(?:mif1|msf1).{4}(?:.{4}){0,12}?avi[fs]"),
    ("HEIF", rb".{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)"),
    ("JPEG2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ("PDF", _PDF),
)
_UNSUPPORTED = (
    ("an SVG drawing; convert it to PNG", rb"(?:<\?xml.{0,400}?)?(?:<!--.{0,400}?-->\s*)?<svg\b"),
    ("EPS; convert it to PNG", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("Photoshop's PSD; convert it to PNG", rb"8BPS"),
    ("FITS; convert it to TIFF", rb"SIMPLE  ="),
    ("DICOM; convert it to TIFF or PNG", rb".{128}DICM"),
    ("JPEG XL; convert it to PNG or JPEG", rb"\xff\x0a|\0{3}\x0cJXL "),
    ("JPEG XR; convert it to PNG or JPEG", rb"II\xbc"),
    ("an icon; convert it to PNG", rb"\0\0\x01\0|icns"),
    ("a netpbm image; convert it to PNG", rb"P[1-7]\s"),
    ("an EXR image; convert it to TIFF", rb"\x76\x2f\x31\x01"),
    ("a video; give its frames as images", rb".{4}ftyp|\x1aE\xdf\xa3"),
)
_NO_IMAGE = (
    ("a web page, not the image on it", rb"<!doctype html|<html\b"),
    ("a ZIP file, as Office documents are", rb"PK\x03\x04"),
    ("a gzip file", rb"\x1f\x8b"),
    ("a pointer of Git LFS; run `git lfs pull`", rb"version https://git-lfs"),
    ("JSON", rb"[\[{]\s*[\"\[{\d]"),
)
_HEAD = 1024


def find_format(data: bytes) -> str:
    """The format of an image, one of FORMATS.

    Raises RowError: `image_unsupported` for one that is not read here, or not without a library;
    `image_corrupt` for bytes that are no image at all.
    """
    head = data[:_HEAD]
    for name, pattern in _READ:
        if re.match(pattern, head, re.DOTALL):
            _check_library(name)
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for code, kinds in (("image_unsupported", _UNSUPPORTED), ("image_corrupt", _NO_IMAGE)):
        for kind, pattern in kinds:
            if any(re.match(pattern, start, re.DOTALL | re.IGNORECASE) for start in (head, text)):
                raise RowError(code, f"this is {kind}")
    raise RowError("image_corrupt", f"not an image of {', '.join(FORMATS)}{_describe(data)}")


def is_pdf(data: bytes) -> bool:
    """Whether these are the bytes of a PDF."""
    return re.match(_PDF, data[:_HEAD]) is not None


def _check_library(name: str) -> None:
    if name == "HEIF" and find_spec("pillow_heif") is None:
        what = "HEIC; run `pip install pillow-heif`, or convert it to JPEG"
    elif name == "PDF" and find_spec("pypdfium2") is None:
        what = "a PDF; run `pip install pypdfium2`, or give its pages as images"
    elif name == "AVIF" and not features.check("avif"):
        what = "AVIF, which this Pillow lacks; run `pip install --force-reinstall pillow`"
    elif name == "JPEG2000" and not features.check("jpg_2000"):
        what = "JPEG 2000, which this Pillow lacks; run `pip install --force-reinstall pillow`"
    else:
        return
    raise RowError("image_unsupported", f"this is {what}")


def _describe(data: bytes) -> str:
    if not data:
        return "; it is empty"
    if not data.strip(b"\0"):
        return "; it is all zeros, as of a copy that was broken off"
    return ""
