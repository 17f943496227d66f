"""The page in a browser: filters, links to rows, keys, sizes, colours, and what axe finds."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mmrag_batch import evaluate
from tests.report.outputs import make_row, make_rows, write_output
from tests.report.test_page import HOSTILE, call

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
SERIOUS = {"serious", "critical"}
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One browser for all tests here."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on 24 rows beside another run, which answered two of them otherwise."""
    folder = tmp_path_factory.mktemp("page")
    before = make_rows()
    for number in (3, 16):
        before[number] |= {"prediction": "blue", "prediction_index": 2}
    before[3] |= {"prediction": "red", "prediction_index": 0}
    output = write_output(folder / "out.csv", make_rows())
    other = write_output(folder / "before.csv", before)
    call("report", output, "--out", folder / "report.html", "--compare", other)
    return folder / "report.html"


@pytest.fixture
def open_page(browser: "Browser", page_file: Path) -> Iterator[Open]:
    """Opens a page in a window of its own. It must ask for nothing but itself, and complain of
    nothing: what its policy refuses is a complaint."""
    windows, said = [], []

    def opened(file: Path = page_file, anchor: str = "", **options: Any) -> "Page":
        window = browser.new_context(**{"viewport": DESKTOP, **options})
        windows.append(window)
        page = window.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: said.append(request.url))
        page.goto(file.as_uri() + anchor)
        assert said[:1] == [file.as_uri()]
        said[:] = [text for text in said[1:] if not text.startswith("data:image/jpeg")]
        return page

    yield opened
    for window in windows:
        window.close()
    assert [text for text in said if not text.startswith("data:image/jpeg")] == []


def shown(page: "Page") -> list[int]:
    """The numbers of the rows that are shown, in order."""
    rows = page.locator("article.row:visible").all()
    return [int((row.get_attribute("id") or "").removeprefix("row-")) for row in rows]


def test_rows_are_filtered_by_what_became_of_them(open_page: Open) -> None:
    page = open_page()
    assert page.inner_text("#shown") == "24 of 24 rows are shown."
    page.select_option("[name=outcome]", "wrong")
    assert shown(page) == [3, 7, 11, 15, 19, 23]
    page.select_option("[name=evidence]", "not kept")
    assert shown(page) == [11, 23]
    page.select_option("[name=group-0]", label="photo")
    assert page.inner_text("#shown") == "0 of 24 rows are shown."
    page.click("button[type=reset]")
    page.get_by_text("24 of 24 rows are shown.").wait_for()
    page.select_option("[name=status]", "degraded")
    assert shown(page) == [10]
    page.click("button[type=reset]")
    page.select_option("[name=flip]", "became right")
    assert shown(page) == [16]


def test_rows_are_searched_and_sorted(open_page: Open) -> None:
    page = open_page()
    page.fill("[name=text]", "THING 1")
    assert shown(page) == [1, *range(10, 20)]
    page.fill("[name=low]", "0.85")
    page.fill("[name=high]", "0.88")
    assert shown(page) == [11, 12, 13, 14]
    page.select_option("[name=order]", "low")
    assert shown(page) == [14, 13, 12, 11]
    page.select_option("[name=order]", "number")
    assert shown(page) == [11, 12, 13, 14]


def test_a_link_leads_to_its_row_whatever_is_filtered(open_page: Open) -> None:
    page = open_page(anchor="#row-11")
    assert page.evaluate("document.activeElement.id") == "row-11"
    assert page.locator("#row-11").is_visible()
    page.select_option("[name=outcome]", "right")
    assert not page.locator("#row-5").is_visible()
    page.click('#problems a[href="#row-5"]')
    page.locator("#row-5:focus").wait_for()


def test_a_row_that_is_not_there_is_told_with_what_explains_it(open_page: Open) -> None:
    page = open_page(anchor="#row-99")
    said = page.inner_text("#absent")
    assert said.startswith("That row is not on this page. mmrag-batch explain ")
    assert said.endswith("out.csv 99 shows it.")


def test_all_of_it_works_by_keyboard(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Figures"
    page.focus("[name=text]")
    page.keyboard.type("thing 7")
    assert shown(page) == [7]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "outcome"
    page.keyboard.type("r")  # as a select takes it: the first that begins so
    assert page.input_value("[name=outcome]") == "right"
    assert shown(page) == []
    page.focus("button[type=reset]")
    page.keyboard.press("Enter")
    page.get_by_text("24 of 24 rows are shown.").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)])
def test_axe_finds_nothing_serious(open_page: Open, scheme: str, viewport: dict[str, int]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    page = open_page(color_scheme=scheme, viewport=viewport)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in SERIOUS] == []
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


def test_it_is_dark_where_that_is_wished_and_light_on_paper(open_page: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="dark")
    assert page.evaluate(ground) == "rgb(20, 22, 26)"
    page.emulate_media(media="print")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert not page.locator("#filters").is_visible()
    assert len(shown(page)) == 24


def test_without_scripts_every_row_is_there(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("article.row").count() == 24
    assert not page.locator("#filters").is_visible()


def test_in_a_notebook_it_keeps_to_its_frame(open_page: Open, page_file: Path) -> None:
    frame = evaluate(page_file.with_name("out.csv"), by=["kind"])._repr_html_()
    notebook = page_file.with_name("notebook.html")
    notebook.write_text(f"<!doctype html><title>cells</title><p>a cell</p>{frame}", "utf-8")
    page = open_page(notebook, color_scheme="dark")
    head = page.frame_locator("iframe")
    assert head.locator("#accuracy").inner_text() == "0.696"
    assert head.locator("svg.plot").count() == 2
    ground = "(one) => getComputedStyle(one).backgroundColor"
    assert head.locator("body").evaluate(ground) == "rgb(20, 22, 26)"
    assert page.locator("body").evaluate(ground) == "rgba(0, 0, 0, 0)"


def test_a_hostile_table_runs_nothing(open_page: Open, tmp_path: Path) -> None:
    rows = [
        make_row(number, id=f"{text}{number}", kind=text, question_text=text, documents=[text] * 2)
        for number, text in enumerate(HOSTILE)
    ]
    output = write_output(tmp_path / "out.csv", rows)
    call("report", output, "--out", tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    questions = page.locator(".question").all_text_contents()
    assert questions[:-1] == HOSTILE[:-1]
    page.select_option("[name=group-0]", label=HOSTILE[0])
    assert shown(page) == [0]
    assert page.locator("script").count() == 1
