"""The documentation site: built strictly, in need of nothing but itself, with a live report."""

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from mmrag_batch import evaluate
from tests import site

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("zensical") is None, reason="no zensical: make site"
    ),
]
CHROMIUM = shutil.which("chromium")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once."""
    return site.build(tmp_path_factory.mktemp("site"))


class Links(HTMLParser):
    """What a page leads to and what it loads, and what in it can be led to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if tag == "a":
            self.targets.append(values.get("href") or "")
        else:
            self.loaded += [values[name] or "" for name in ("href", "src") if name in values]


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(folder: Path) -> None:
    pages = {file: Links(file) for file in folder.rglob("*.html") if file.name != "404.html"}
    assert len(pages) >= 25
    lost = []
    for file, links in pages.items():
        loaded = [one for one in links.loaded if not one.startswith("data:image/jpeg;base64,")]
        assert [one for one in loaded if urlsplit(one).scheme or urlsplit(one).netloc] == []
        for target in (*links.targets, *loaded):
            parts = urlsplit(target)
            if not parts.scheme:
                there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
                ids = pages[there].ids if there in pages else {""}
                if not there.is_file() or unquote(parts.fragment) not in ids | {""}:
                    lost.append((file.name, target))
    assert lost == []


def test_each_page_of_docs_is_in_the_navigation(folder: Path) -> None:
    first = Links(folder / "index.html").targets
    named = [f"./docs/{file.stem}.html" for file in (site.ROOT / "docs").glob("*.md")]
    assert [name for name in named if name not in first] == []


def test_a_link_that_leads_nowhere_stops_the_build(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder.parent / "pages", tmp_path / "pages")
    shutil.copy(folder.parent / "zensical.toml", tmp_path)
    with (tmp_path / "pages" / "docs" / "start.md").open("a") as page:
        page.write("\n[nowhere](settings.md#nothing)\n")
    with pytest.raises(subprocess.CalledProcessError):
        site.run(tmp_path, "zensical", "build", "--strict")


@pytest.fixture(scope="module")
def open_page(folder: Path) -> Iterator[Open]:
    """Opens a page of the site, from the disk. It must ask for nothing but what lies there, and
    complain of nothing."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    said: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened(name: str, **options: Any) -> "Page":
            page = browser.new_page(**{"viewport": DESKTOP, **options})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: said.append(request.url))
            page.goto((folder / name).as_uri())
            return page

        yield opened
        browser.close()
    ours = (folder.as_uri(), "about:srcdoc", "data:image/", "blob:")
    assert said
    assert [text for text in said if not text.startswith(ours)] == []


@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)])
def test_the_report_of_the_demo_is_live(
    folder: Path, open_page: Open, scheme: str, viewport: dict[str, int]
) -> None:
    page = open_page("docs/live-report.html", color_scheme=scheme, viewport=viewport)
    report = page.frame_locator("main iframe")
    page.locator("main iframe").scroll_into_view_if_needed()
    assert report.locator("#shown").inner_text() == "60 of 60 rows are shown."
    accuracy = evaluate(folder.parent / "out.csv").overall.accuracy
    assert accuracy is not None
    assert report.locator("#accuracy").inner_text() == f"{accuracy.value:.3f}"
    report.locator("[name=status]").select_option("degraded")
    assert report.locator("article.row:visible").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.parametrize(("scheme", "viewport"), [("dark", DESKTOP), ("light", PHONE)])
def test_pages_fit_their_window_and_are_dark_where_that_is_wished(
    open_page: Open, scheme: str, viewport: dict[str, int]
) -> None:
    for name in ("index", "docs/settings", "docs/faq"):
        page = open_page(f"{name}.html", color_scheme=scheme, viewport=viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light"), ground
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []


def test_the_search_works_from_the_disk(open_page: Open) -> None:
    page = open_page("index.html")
    page.keyboard.press("Control+k")
    page.get_by_role("dialog").get_by_placeholder("Search").fill("preempted")
    page.get_by_role("dialog").get_by_text("Clusters").first.wait_for()
