"""PDFs (ISO 32000-1) of a few lines: what a test needs of one, object by object."""

from collections.abc import Mapping, Sequence

A4 = (595, 842)


def write_pdf(
    pages: Sequence[str],
    *,
    size: tuple[float, float] = A4,
    colour: str = "1 0 0",
    trailer: bytes = b"",
    forms: Mapping[str, bytes] = {},
) -> bytes:
    """A page for each text, which stands on a white half above one of a colour (red, green, blue
    from 0 to 1). Pages may show `forms`, which may show each other, by `/NAME Do` in a text."""
    width, height = size
    contents = [_content(text, width, height, colour) for text in pages]
    first, font = 3, 3 + 2 * len(pages)
    names = " ".join(f"/{name} {font + 1 + n} 0 R" for n, name in enumerate(forms))
    resources = f"/Resources<</Font<</F {font} 0 R>>/XObject<<{names}>>>>"
    kids = " ".join(f"{first + 2 * n} 0 R" for n in range(len(pages)))
    box = f"/MediaBox[0 0 {width} {height}]"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]{box}{resources}>>".encode(),
    ]
    for number, content in enumerate(contents):
        page = f"<</Type/Page/Parent 2 0 R/Contents {first + 1 + 2 * number} 0 R>>"
        objects += [page.encode(), _stream(content)]
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    head = f"/Type/XObject/Subtype/Form/BBox[0 0 {width} {height}]{resources}".encode()
    objects += [_stream(form, head) for form in forms.values()]
    return _file(objects, trailer)


def _content(text: str, width: float, height: float, colour: str) -> bytes:
    lines = text.splitlines() or [""]
    words = " T* ".join(f"({line}) Tj" for line in lines)
    drawn = f"BT 0 g /F 24 Tf 26 TL 50 {height - 50} Td {words} ET"
    if text.endswith(" Do"):
        drawn = text
    return f"{colour} rg 0 0 {width} {height / 2} re f {drawn}".encode()


def _stream(content: bytes, head: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (head, len(content), content)


def _file(objects: Sequence[bytes], trailer: bytes) -> bytes:
    data, places = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, start=1):
        places.append(b"%010d 00000 n \n" % len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    count = len(objects) + 1
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (count, b"".join(places))
    end = b"trailer<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (
        count,
        trailer,
        len(data),
    )
    return data + table + end
