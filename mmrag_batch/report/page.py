"""One HTML page that needs nothing but itself: no request, no script but its own, and nothing of a
table in it but text.

Every expression of the templates is escaped, masked, and shown without control characters; style
and script are files of this package, allowed by their hashes and by nothing else.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from html import escape
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmrag_batch.report.calibration import Point
from mmrag_batch.report.cards import Card
from mmrag_batch.report.compare import Comparison
from mmrag_batch.report.interval import Accuracy
from mmrag_batch.report.metrics import Scores
from mmrag_batch.report.plain import plain
from mmrag_batch.report.plots import Plot
from mmrag_batch.report.text import Table

MOST_BYTES = 23 * 2**20
"""Of the rows of a page, which is then below the 25 MiB that many mail servers let through."""
MARK = "<!-- mmrag-batch report, SHA-256 of all before: "
"""What the last line of a page begins with; see `is_ours`."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows whose problem has a code: how many of them, the first, and what it says."""

    code: str
    rows: int
    first: int
    message: str


@dataclass(frozen=True, slots=True)
class Threshold:
    """The confidence from which on answers are as accurate as `wished`; no `point`: there is
    none."""

    wished: float
    point: Point | None
    share: Accuracy | None


@dataclass(frozen=True, slots=True)
class Overview:
    """All of a page but its rows.

    `notes` say what is not as it should be. `titles` and `groups` are the table of figures: lines
    under the name of what groups them. Of `labelled` rows, `scored` have a confidence; `bins` are
    what the plot of reliability shows, in words. `filters` are the columns that rows can be
    filtered by, with their values; `facts` what is known of the run; `command` what to type to go
    on with it, and `explain` what to type before a row to have it explained.
    """

    title: str
    notes: Sequence[str]
    overall: Scores
    labels: Sequence[str]
    titles: Sequence[str]
    groups: Sequence[tuple[str, Sequence[tuple[str, tuple[str, ...]]]]]
    plots: Mapping[str, Plot]
    bins: Sequence[tuple[str, int, str, str]]
    scored: int
    labelled: int
    thresholds: Sequence[Threshold]
    codes: Sequence[Codes]
    filters: Mapping[str, Sequence[str]]
    facts: Sequence[tuple[str, str]]
    command: str
    explain: str
    comparison: Comparison | None
    ablations: Table


def render(overview: Overview, cards: Iterable[Card], rule: Callable[[int], str]) -> bytes:
    """The page, with as many rows as there is room for; `rule` says of so many which they are."""
    template = _environment().get_template("row.html")
    rows: list[Markup] = []
    size = 0
    for card in cards:
        row = Markup(template.render(card=card, columns=list(overview.filters)))  # noqa: S704
        size += len(row.encode())
        if size > MOST_BYTES:
            break
        rows.append(row)
    data = _fill(overview, rows=rows, rule=rule(len(rows)))
    return data + f"{MARK}{sha256(data).hexdigest()} -->\n".encode()


def render_head(overview: Overview) -> str:
    """What stands on the page above its rows, in a frame for another page, such as a notebook:
    neither's style reaches the other, and nothing in the frame may run."""
    title, page = escape(plain(overview.title)), escape(_fill(overview, rows=None).decode())
    style = "width:100%;height:72rem;border:0"
    return f'<iframe title="{title}" srcdoc="{page}" sandbox style="{style}"></iframe>'


def is_ours(data: bytes) -> bool:
    """Whether `render` made a page, and nobody changed it since."""
    page, mark, end = data.rpartition(MARK.encode())
    return bool(mark) and end == f"{sha256(page).hexdigest()} -->\n".encode()


def _fill(overview: Overview, **parts: object) -> bytes:
    style, script = _own("page.css"), _own("page.js")
    policy = _policy(style, script)
    template = _environment().get_template("page.html")
    text = template.render(page=overview, style=style, script=script, policy=policy, **parts)
    return text.encode("utf-8", errors="replace")


@lru_cache(1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmrag_batch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: "-" if value is None else f"{value:.3f}"
    environment.filters["picture"] = lambda picture: Markup(picture.uri)  # noqa: S704  # base64
    return environment


def _finalize(value: object) -> object:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return plain(value)


def _own(name: str) -> Markup:
    text = files("mmrag_batch.report").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704  # a file of this package


def _policy(style: str, script: str) -> str:
    """A Content Security Policy (CSP level 2) under which a page can load nothing."""
    hashes = (b64encode(sha256(text.encode()).digest()).decode() for text in (style, script))
    style_hash, script_hash = hashes
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; "
        f"script-src 'sha256-{script_hash}'; base-uri 'none'; form-action 'none'"
    )
