"""What a person sees who runs `predict` on a terminal: start, live line, Ctrl-C, end."""

import json
import re
from pathlib import Path

import pytest

from mmrag_batch import __version__
from mmrag_batch.settings import DEMO_BUNDLE
from tests.cli.terminal import CTRL_C, Terminal
from tests.run.parts import Place, questions

LOGGED = re.compile(r"[0-9]{2}:[0-9]{2}:[0-9]{2} ")
LIVE = re.compile(r" *[0-9]+%\|.*\| [0-9,]+ of [0-9,]+ rows")
PAGE = Path(__file__).parents[2] / "docs" / "terminal.md"
ROWS = 600


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.write(questions(ROWS))
    return place


def predict(place: Place, *options: object, **script: object) -> Terminal:
    words = ("predict", "in.csv", place.name, *options)
    return Terminal(*words, folder=place.folder, environ=place.environ(**script))


def kinds_of(lines: list[str]) -> str:
    """A letter for each line: of the log, live, or the last words of a command."""
    marks = {"l": LOGGED, "b": LIVE, "e": re.compile("mmrag-batch: ")}
    return "".join(
        next((mark for mark, kind in marks.items() if kind.match(line)), "?") for line in lines
    )


def test_a_run_says_what_it_does_from_its_start_over_ctrl_c_to_its_end(place: Place) -> None:
    (place.folder / "my-bundle").symlink_to(DEMO_BUNDLE)
    with predict(place, "--bundle", "my-bundle", delay=0.02) as terminal:
        terminal.read_until(r"of 600 rows, [0-9.]+ rows/s, [0-9.]+ (s|min|h) left")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130, terminal.lines
    assert kinds_of(terminal.lines) == "llllllllbe", terminal.lines
    with predict(place, "--bundle", "my-bundle") as again:
        assert again.wait() == 0, again.lines
    assert kinds_of(again.lines) == "lllllllbl", again.lines
    shown = re.findall(r"^```text\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [plain(block.splitlines()) for block in shown] == [
        plain(terminal.lines),
        plain(again.lines),
    ]


def plain(lines: list[str]) -> list[str]:
    """Lines without what differs from run to run: numbers, and how long a bar is."""
    texts = (re.sub(r"^ *[0-9]+%\|.*\|", "BAR", line) for line in lines)
    numbers = re.compile(r"[0-9][0-9.,:]*( (s|min|h) left)?")
    return [numbers.sub("N", text).rstrip() for text in texts]


def test_what_was_kept_is_counted_apart(place: Place) -> None:
    place.predict("--limit", 500)
    with predict(place, "--overwrite") as terminal:
        assert terminal.wait() == 0
    assert "| 600 of 600 rows, " in terminal.lines[-2]
    assert re.search(
        r"out.csv: 600 rows, 100 asked now \(600 ok, 0 degraded, 0 error\) in [0-9.]+ s, "
        r"[0-9,.]+ rows/s\. Next: mmrag-batch report out\.csv$",
        terminal.lines[-1],
    )


def test_ctrl_c_again_stops_at_once_and_clears_the_live_line(place: Place) -> None:
    with predict(place, "--grace", 600, slow={"100": 600}) as terminal:
        log = place.folder / "asked.txt"
        terminal.read_while(lambda: not log.exists() or len(log.read_text().split()) < 100)
        terminal.type(CTRL_C)
        terminal.read_until("SIGINT: finishing [0-9]+ rows, 600 s at most")
        terminal.type_until_it_ends(CTRL_C)
        assert terminal.wait() == 130, terminal.lines
    lines = terminal.lines
    assert lines[-1] == "mmrag-batch: A second signal, SIGINT: left at once."
    assert kinds_of(lines) == "lllllllle", lines


def test_a_model_that_loads_is_watched_and_ctrl_c_ends_that_at_once(place: Place) -> None:
    with predict(place, load=600) as terminal:
        terminal.read_until("Loading the generator: 00:0[1-9]")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
    lines = terminal.lines
    assert lines[-1].startswith("mmrag-batch: Stopped: SIGINT before the first row.")
    assert kinds_of(lines) == "lllllle", lines


def test_quiet_shows_nothing_on_a_terminal_and_json_its_object_alone(place: Place) -> None:
    with predict(place, "--quiet", "--json") as terminal:
        assert terminal.wait() == 0
    assert json.loads(terminal.sent)["rows"]["ok"] == ROWS
    with predict(place, "--quiet", "--fresh") as terminal:
        assert terminal.wait() == 0
    assert terminal.sent == ""


@pytest.mark.parametrize("flag", ["--verbose", "-v"])
def test_verbose_logs_settings_versions_and_each_row(place: Place, flag: str) -> None:
    said = place.predict(flag, "--limit", 2, oom=[1]).stderr
    assert "engine = scripted, limit = 2, verbose = True; the others are by default." in said
    assert f"Versions: mmrag-batch {__version__}, python " in said
    assert "line 2: ok; evidence: none\n" in said
    assert "line 3: error; evidence: none; engine_oom: " in said
    assert "The engine is scripted." in said
    assert "Versions" not in place.predict("--limit", 3).stderr
